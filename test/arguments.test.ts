import { describe, expect, it } from "vitest";
import { checkOptions, checkShape, choice, finite, integer, show } from "../lib/arguments.js";
import { LtxError } from "../lib/errors.js";

function message(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(LtxError);
    expect((error as LtxError).code).toBe("invalid_argument");
    return (error as LtxError).message;
  }
  throw new Error("nothing was thrown");
}

describe("choice", () => {
  const table = { f32: 0, bf16: 1, gelu_tanh: 2, tanh: 3 };

  it("gives what the name stands for", () => {
    expect(choice("op", "dtype", "bf16", table)).toBe(1);
  });

  it("names the legal value that is nearest", () => {
    expect(message(() => choice("op", "dtype", "tan", table))).toBe(
      '[op] dtype is "tan", expected one of f32, bf16, gelu_tanh, tanh; did you mean tanh?',
    );
    expect(message(() => choice("op", "dtype", "gelu", table))).toMatch(/did you mean gelu_tanh\?$/);
    expect(message(() => choice("op", "dtype", "bfloat16", table))).toMatch(/did you mean bf16\?$/);
    expect(message(() => choice("op", "dtype", "float32", table))).toMatch(/did you mean f32\?$/);
  });

  it("takes no names that every object has, and nothing but text", () => {
    for (const name of ["toString", "constructor", "__proto__", "", 0, null, undefined, ["f32"], Symbol("f32")]) {
      expect(message(() => choice("op", "dtype", name, table))).toMatch(/^\[op\] dtype is .*expected one of f32, /);
    }
  });
});

describe("numbers", () => {
  it("are whole and in range", () => {
    expect(integer("op", "rows", 3, 0, 3)).toBe(3);
    for (const value of [-1, 4, 1.5, Number.NaN, Infinity, "2", null, undefined, 2n, 2 ** 53]) {
      expect(message(() => integer("op", "rows", value, 0, 3))).toBe(
        `[op] rows is ${show(value)}, expected a whole number from 0 to 3`,
      );
    }
  });

  it("are finite", () => {
    expect(finite("op", "lr", 1e-30, 0)).toBe(1e-30);
    for (const value of [Number.NaN, Infinity, -1e-9, "1", undefined]) {
      expect(message(() => finite("op", "lr", value, 0))).toMatch(/expected a finite number of at least 0$/);
    }
  });
});

describe("checkShape", () => {
  it("takes up to eight dimensions, empty ones among them", () => {
    for (const shape of [[], [0], [2, 0, 3], [1, 1, 1, 1, 1, 1, 1, 1]]) {
      expect(() => checkShape("op", shape)).not.toThrow();
    }
  });

  it("refuses what is no shape", () => {
    const holes = new Array(3);
    for (const shape of ["22", 4, null, undefined, {}, [-1], [1.5], ["2"], [Number.NaN], holes, Array(9).fill(1)]) {
      expect(message(() => checkShape("op", shape))).toMatch(/is not a list of at most 8 non-negative integers$/);
    }
  });

  it("refuses products that can't be counted, behind an empty dimension too", () => {
    for (const shape of [
      [2 ** 32, 2 ** 30],
      [2 ** 32, 2 ** 32],
      [274177, 67280421310721],
      [0, 2 ** 40, 2 ** 40],
    ]) {
      expect(message(() => checkShape("op", shape))).toMatch(/has more elements than memory can be counted for$/);
    }
  });
});

describe("checkOptions", () => {
  it("names an option that is not known, and what it may have been", () => {
    expect(message(() => checkOptions("op", { activaton: 1 }, ["kind", "activation"]))).toBe(
      '[op] unknown option "activaton", did you mean activation?',
    );
    expect(message(() => checkOptions("op", { xyz: 1 }, ["kind", "eps"]))).toBe(
      '[op] unknown option "xyz", expected kind, eps',
    );
    for (const value of [null, undefined, 3, "kind", ["kind"]]) {
      expect(message(() => checkOptions("op", value, ["kind"]))).toMatch(/expected an object of kind$/);
    }
  });
});

describe("show", () => {
  it("stays short, whatever it is given", () => {
    const cyclic: unknown[] = [];
    cyclic.push(cyclic);
    const hostile = {
      toString: () => {
        throw new Error("mine");
      },
    };
    for (const [value, text] of [
      [cyclic, "[[…]]"],
      [hostile, "an object"],
      [Object.create(null), "Object {}"],
      [{ a: 1, b: 2 }, "Object {a, b}"],
      [new Float32Array(2), "Float32Array of 8 bytes"],
      [7n, "7n"],
      [() => 1, "a function"],
    ] as const) {
      expect(show(value)).toBe(text);
    }
    expect(show("x".repeat(1000)).length).toBeLessThan(100);
  });
});
