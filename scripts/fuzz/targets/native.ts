/** The addon below all checks of JavaScript: numbers that are no tensors, shapes that do not fit, scalars of any size. */
import { openSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { LtxError } from "../../../lib/errors.js";
import * as native from "../../../lib/native.js";
import { device } from "../../../lib/tensor/index.js";
import { checkSanity, Maker } from "../arguments.js";
import type { Random } from "../random.js";
import type { Target } from "../target.js";

const SHAPES = [
  [],
  [0],
  [1],
  [4],
  [2, 3],
  [3, 8],
  [2, 4, 8],
  [1, 6, 8],
  [1, 2, 4, 4, 8],
  [5, 3, 3, 3, 8],
  [2, 2, 2, 2, 2, 2, 2, 2],
];

const scalar = (random: Random): number =>
  random.chance(0.6)
    ? random.pick([0, 1, 2, 3, 4, 8, 0.5, 1e-6])
    : random.chance(0.5)
      ? random.edge()
      : random.pick([-1, Number.NaN, Number.POSITIVE_INFINITY, -1e7, 1.5, 1e300]);

export const nativeTarget: Target = {
  name: "native",
  about: "the addon's own functions, below the checks of JavaScript",
  weight: 20,
  async setup(folder) {
    const cpu = device("cpu");
    cpu.setMemoryLimit(2 ** 26);
    const path = join(folder, "mapped");
    writeFileSync(path, Buffer.alloc(256, 1));
    const descriptors = [openSync(path, "r"), openSync(folder, "r")];
    const ops = native.ops();
    return async (random, label) => {
      const make = new Maker(random, cpu);
      for (let i = random.within(1, 5); i > 0; i--) {
        random.pick([make.f32, make.f32, make.f32, make.bf16, make.i32, make.u8])(...random.pick(SHAPES));
      }
      const id = () => (random.chance(0.9) ? random.pick(make.made).handle : random.chance(0.5) ? 0 : random.edge());
      const shape = () =>
        random.chance(0.7) ? random.pick(SHAPES) : Array.from({ length: random.below(12) }, () => scalar(random));
      const where = () => (random.chance(0.9) ? cpu.handle : random.edge());
      const given: number[] = [];
      const acts: [string, () => unknown][] = [
        [
          "empty",
          () =>
            given.push(
              native.empty(
                where(),
                random.pick([...native.dtypes, "x" as "f32"]),
                random.pick([...native.memoryGroups, "x" as "data"]),
                shape(),
              ),
            ),
        ],
        ["view", () => given.push(native.view(id(), shape(), scalar(random)))],
        ["read", () => native.read(id())],
        ["synchronize", () => native.synchronize(where())],
        [
          "upload",
          () =>
            native.upload(
              id(),
              random.pick([new Float32Array(6), new Uint8Array(4), new Float64Array(1), new Int32Array(0)]),
            ),
        ],
        ["markParameter", () => native.markParameter(id())],
        [
          "setLimit",
          () => native.setLimit(where(), random.pick([Number.NaN, -5, 1e30, 2 ** 26, "2GB" as unknown as number])),
        ],
        ["memory", () => native.memory(where())],
        ["describe", () => native.describe(where())],
        ["stepReport", () => native.stepReport(where())],
        ["profile", () => native.profile(where())],
        ["resetPeak", () => native.resetPeak(where())],
        [
          "openLibrary",
          () => native.openLibrary(random.pick([path, "/nowhere.so", "", "\0"]), scalar(random), {} as never),
        ],
        ["unmapFile", () => native.unmapFile(scalar(random))],
        [
          "loadMapped",
          () => {
            const file =
              native.mapFile(path, random.chance(0.9) ? random.pick(descriptors) : scalar(random)) ?? scalar(random);
            try {
              native.loadMapped(id(), random.chance(0.9) ? file : scalar(random), scalar(random), random.below(7) - 1, [
                scalar(random),
                scalar(random),
                scalar(random),
              ]);
            } finally {
              native.unmapFile(file);
            }
          },
        ],
      ];
      const run: [string, () => unknown] = [
        "run",
        () => {
          const [name, operands, scalars] = random.pick(ops);
          label(`native.run ${name}`);
          const words = (text: string) => text.split(/[\s,]+/).filter((word) => /\w/.test(word));
          const lists = random.within(0, 3);
          // Mostly as many as the op has, each of any kind: then what it is, its shape and its scalars decide.
          const tensors = words(operands).flatMap((word) =>
            Array.from({ length: word.includes("*") ? lists : 1 }, () => (random.chance(0.1) ? 0 : id())),
          );
          const values = words(scalars).map(() => scalar(random));
          if (random.chance(0.05)) return native.run(random.pick(["x", "", "toString"]), tensors, values);
          if (random.chance(0.1)) tensors.push(...Array.from({ length: random.within(1, 300) }, id));
          if (random.chance(0.1)) random.pick([tensors, values]).pop();
          native.run(name, tensors, values);
        },
      ];
      let failure: unknown;
      for (let i = random.within(1, 4); i > 0; i--) {
        const [name, act] = random.chance(0.5) ? run : random.pick(acts);
        label(`native.${name}`);
        try {
          await act();
        } catch (error) {
          failure = error;
        }
      }
      await cpu.synchronize().catch(() => {});
      for (const one of given) native.release(one);
      make.dispose();
      cpu.setMemoryLimit(2 ** 26);
      if (random.below(16) === 0) await checkSanity(cpu);
      // Below the checks any error will do: what matters is that there is a process left to hear it.
      if (failure) throw failure instanceof LtxError ? failure : new LtxError("native", String(failure));
    };
  },
};
