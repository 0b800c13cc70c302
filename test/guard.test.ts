/** The package's entry: arguments of other types than TypeScript allows are named, whatever function they are passed to. */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { LtxError } from "../lib/errors.js";
import { guard, type Signatures, type Spec } from "../lib/guard.js";
import * as index from "../lib/index.js";

const root = join(__dirname, "..");
const built = existsSync(join(root, "dist", "signatures.json"));

class Shelf {
  constructor(readonly size: number) {}
  static of(size: number): Shelf {
    return new Shelf(size);
  }
  put(names: string[]): number {
    return names.length + this.size;
  }
}

const calls: Signatures["calls"] = {
  twice: { fails: "throws", overloads: [[{ name: "x", spec: "number" }]] },
  later: { fails: "rejects", overloads: [[{ name: "path", spec: "string" }]] },
  steps: { fails: "yields", overloads: [[{ name: "options", optional: true, spec: { type: 0 } }]] },
  either: {
    fails: "throws",
    overloads: [[{ name: "a", spec: "string" }], [{ name: "a", spec: { tuple: ["number", "number"], least: 2 } }]],
  },
  join: { fails: "throws", overloads: [[{ name: "parts", rest: true, spec: "string" }]] },
  table: { fails: "throws", overloads: [[{ name: "sizes", spec: { map: { array: "number" }, key: "string" } }]] },
  weigh: { fails: "throws", overloads: [[{ name: "shelf", spec: { instance: "Shelf" } }]] },
  "new Shelf": { fails: "throws", overloads: [[{ name: "size", spec: "number" }]] },
  "Shelf.of": { fails: "throws", overloads: [[{ name: "size", spec: "number" }]] },
  "Shelf#put": { fails: "throws", overloads: [[{ name: "names", spec: { array: "string" } }]] },
};
const mode = { any: [{ literal: "fast" }, { literal: "slow" }, "undefined"] } as const;
const signatures: Signatures = {
  calls,
  hidden: [],
  types: [{ fields: { mode, inner: { any: ["undefined", { type: 1 }] } } }, { fields: { deep: "boolean" } }],
};
const own = guard(
  {
    twice: (x: number) => 2 * x,
    later: async (path: string) => path,
    async *steps(_options?: unknown) {
      yield 1;
    },
    either: (a: unknown) => a,
    join: (...parts: string[]) => parts.join(""),
    table: (sizes: Map<string, number[]>) => sizes.size,
    weigh: (shelf: Shelf) => shelf.size,
    Shelf,
    plain: { kept: 1 },
  },
  signatures,
);

// biome-ignore lint/suspicious/noExplicitAny: what a program in JavaScript may write
const js = own as any;

describe("what types allow passes, with its this and its result", () => {
  it("for functions, constructors, statics and methods", async () => {
    expect(own.twice(4)).toBe(8);
    expect(await own.later("a")).toBe("a");
    expect(own.join()).toBe("");
    expect(own.join("a", "b")).toBe("ab");
    expect(js.either([1, 2])).toEqual([1, 2]);
    expect(own.table(new Map([["a", [1]]]))).toBe(1);
    const shelf = new own.Shelf(2);
    expect(shelf).toBeInstanceOf(own.Shelf);
    expect(shelf.constructor).toBe(own.Shelf);
    expect(shelf.put(["x"])).toBe(3);
    expect(own.weigh(own.Shelf.of(5))).toBe(5);
    class Wide extends own.Shelf {}
    expect(new Wide(7)).toBeInstanceOf(Wide);
    expect(own.weigh(new Wide(7))).toBe(7);
    expect(own.plain.kept).toBe(1);
    const values = [];
    for await (const value of own.steps({ mode: "fast", inner: { deep: false } })) values.push(value);
    expect(values).toEqual([1]);
  });
});

describe("what types do not allow is named", () => {
  it.each<[string, () => unknown, string]>([
    ["a missing argument", () => js.twice(), "[twice] x is undefined, expected a number"],
    ["a type", () => js.twice(3n), "[twice] x is 3n, expected a number"],
    ["null", () => js.join("a", null), "[join] parts is null, expected a text"],
    ["no overload", () => js.either(true), "[either] a is true, expected a text or an array of 2"],
    ["the nearest overload", () => js.either([1, "b"]), '[either] a[1] is "b", expected a number'],
    ["a length", () => js.either([1]), "[either] a is [1], expected an array of 2"],
    [
      "in a map",
      () => js.table(new Map([["k", [1, {}]]])),
      '[table] sizes.get("k")[1] is Object {}, expected a number',
    ],
    ["a key", () => js.table(new Map([[1, []]])), "[table] a key of sizes is 1, expected a text"],
    ["another class", () => js.weigh({ size: 1 }), "[weigh] shelf is Object {size}, expected a Shelf"],
    ["a constructor", () => new js.Shelf("2"), '[new Shelf] size is "2", expected a number'],
    ["a static", () => js.Shelf.of(Symbol("s")), "[Shelf.of] size is Symbol(s), expected a number"],
    ["a method", () => new js.Shelf(1).put("ab"), '[Shelf.put] names is "ab", expected an array'],
  ])("%s", (_, call, message) => {
    expect(call).toThrow(new LtxError("invalid_argument", message));
  });

  it("among overloads told apart by a name, which is not what is wrong", () => {
    const part = (type: string, optional = false): Spec => ({
      fields: { size: "number", type: optional ? { any: [{ literal: type }, "undefined"] } : { literal: type } },
    });
    const options = (spec: Spec) => [{ name: "options", spec }];
    const { draw } = guard(
      { draw: (_: unknown) => 1 },
      {
        calls: { draw: { fails: "throws", overloads: [part("a"), part("b"), part("c", true)].map(options) } },
        hidden: [],
        types: [],
      },
    );
    expect(draw({ size: 1 })).toBe(1);
    expect(draw({ size: 1, type: "b", other: 1 })).toBe(1);
    expect(() => draw({ size: "1" })).toThrow('[draw] options.size is "1", expected a number');
    expect(() => draw({ size: "1", type: "a" })).toThrow('[draw] options.size is "1", expected a number');
    expect(() => draw({ size: "1", type: "d" })).toThrow(/options\.(size|type) is /);
    expect(() => draw({ size: 1, type: "d" })).toThrow('[draw] options.type is "d", expected one of a, b, c');
    for (const [key, near] of [
      ["Type", "type"],
      ["siz", "size"],
      ["ty_pe", "type"],
    ] as const) {
      const given = near === "size" ? { size: 1, [key]: 2, type: "a" } : { size: 1, [key]: "a" };
      if (near === "size")
        expect(draw(given)).toBe(1); // the right name is there, too
      else expect(() => draw(given)).toThrow(`[draw] unknown option "${key}", did you mean ${near}?`);
    }
  });

  it("but arrays of another realm are arrays", () => {
    const { sum } = guard(
      { sum: (values: Float32Array) => values.length },
      {
        calls: { sum: { fails: "throws", overloads: [[{ name: "values", spec: { instance: "Float32Array" } }]] } },
        hidden: [],
        types: [],
      },
    );
    expect(sum(runInNewContext("new Float32Array(3)"))).toBe(3);
    expect(() => sum(runInNewContext("new Uint8Array(3)"))).toThrow("Uint8Array of 3 bytes, expected a Float32Array");
  });

  it("in a promise or the first step where the function answers so", async () => {
    await expect(js.later(7)).rejects.toThrow("[later] path is 7, expected a text");
    const name = js.steps({ mode: "fats" });
    await expect(name.next()).rejects.toThrow('options.mode is "fats", expected one of fast, slow; did you mean fast?');
    await expect(js.steps({ inner: { deep: 0 } }).next()).rejects.toThrow(
      "options.inner.deep is 0, expected true or false",
    );
    await expect(js.steps(null).next()).rejects.toThrow("[steps] options is null, expected an object with mode, inner");
  });
});

describe.skipIf(!built)("the built package (npm run build:ts)", () => {
  const api = built ? guard({ ...index }, require(join(root, "dist", "signatures.json"))) : index;
  const run = (code: string, type: string) =>
    execFileSync(process.execPath, [`--input-type=${type}`, "-e", code], { cwd: root, encoding: "utf8" }).trim();

  it("gives the same names to require and to import", () => {
    const names =
      'const names = Object.keys(api).filter((name) => !["default", "module.exports", "__esModule"].includes(name)).sort();';
    const required = run(`const api = require("ltx-native"); ${names} console.log(names.join())`, "commonjs");
    const imported = run(`import * as api from "ltx-native"; ${names} console.log(names.join())`, "module");
    expect(imported).toBe(required);
    expect(required.split(",")).toEqual(expect.arrayContaining(["LtxVideoPipeline", "psnr", "nn", "Tensor"]));
  });

  it.each<[string, (a: never) => unknown, RegExp]>([
    ["fitFrames", () => api.fitFrames(3 as never, 8), /\[fitFrames\] x is 3, expected a Tensor/],
    ["nn.Linear", () => new api.nn.Linear(2, 3, {} as never), /init is Object \{\}, expected an Initializer/],
    ["new Tensor", () => new api.Tensor(1, [2], "f32", {} as never), /not part of the API/],
    ["new VaeTrainer", () => new (api.VaeTrainer as never as new () => unknown)(), /make one by VaeTrainer\.create/],
    [
      "vaeFactors",
      () => api.vaeFactors({ encoder_blocks: 1n } as never),
      /vae\.encoder_blocks is 1n, expected an array/,
    ],
    ["disposed", () => api.posteriorMean(gone()), /expected a tensor that was not disposed/],
  ])("refuses: %s", (_, call, message) => {
    expect(call).toThrow(message);
  });
});

function gone(): index.Tensor {
  const tensor = index.Tensor.from([1], [1], { device: index.device("cpu") });
  tensor.dispose();
  return tensor;
}
