/**
 * Wrong arguments for a function, made from right ones: each argument of a valid call, and each option in it, is replaced
 * in turn by everything that it must not be.
 */
import { expect } from "vitest";
import { LtxError } from "../../lib/errors.js";
import { device, empty, Tensor } from "../../lib/tensor/index.js";

/** One argument: a value that is right, those that must be refused, and those that may be refused but do no harm. */
export interface Argument {
  right: unknown;
  wrong: unknown[];
  odd: unknown[];
}

const argument = (right: unknown, wrong: unknown[], odd: unknown[] = []): Argument => ({ right, wrong, odd });

function disposed(): Tensor {
  const tensor = empty([2, 2]);
  tensor.dispose();
  return tensor;
}

const notTensors = () => [
  3,
  Number.NaN,
  "x",
  true,
  {},
  [],
  [1, 2],
  () => 1,
  Symbol("x"),
  7n,
  new Float32Array(4),
  { handle: 1 },
];
const strangeShapes = () => [[], [7], [0], [3, 5], [2, 0, 3], [1, 1, 1, 1, 1, 1, 1, 1], [5, 1, 3, 1, 2]];

export function tensor(shape: number[], dtype: "f32" | "bf16" | "i32" = "f32"): Argument {
  const zeros = (s: number[], d: typeof dtype | "u8") => {
    const count = s.reduce((a, b) => a * b, 1);
    return Tensor.from(new Float32Array(count), s, { dtype: d });
  };
  const others = (["f32", "bf16", "i32", "u8"] as const).map((other) => zeros(shape, other));
  return argument(
    zeros(shape, dtype),
    [...notTensors(), null, undefined, disposed()],
    [...others, ...strangeShapes().map((s) => zeros(s, dtype))],
  );
}

/** A tensor that may be left out. */
export const optional = (shape: number[]): Argument => orNull(tensor(shape));

const notNumbers = () => ["2", null, {}, [1], true, 2n, () => 1];

/** A whole number from `min` on that `most` bounds, where something does. */
export const whole = (right: number, min = 0, most?: number): Argument =>
  argument(
    right,
    [
      ...notNumbers(),
      Number.NaN,
      Infinity,
      -Infinity,
      1.5,
      min - 1,
      -1e8,
      2 ** 60,
      ...(most === undefined ? [] : [most + 1, 1e8]),
    ],
    [right + 1],
  );

/** A number in arithmetic, for which NaN and infinities are values. */
export const real = (right: number): Argument =>
  argument(right, notNumbers(), [Number.NaN, Infinity, -Infinity, -1, 0, 1e300]);

/** A finite number of at least `min`. */
export const finite = (right: number, min = -Infinity): Argument =>
  argument(
    right,
    [...notNumbers(), Number.NaN, Infinity, -Infinity, ...(min > -Infinity ? [min - 1] : [])],
    [right / 2],
  );

export const flag = (right: boolean): Argument => argument(right, [0, 1, "true", "no", null, {}]);

export const name = (right: string): Argument =>
  argument(right, ["bogus", "", "toString", "__proto__", right.toUpperCase(), 0, 1, null, {}, [right], Symbol("x")]);

export const shape = (right: number[]): Argument =>
  argument(
    right,
    [
      "22",
      4,
      null,
      undefined,
      {},
      [-1],
      [1.5],
      ["2"],
      [Number.NaN],
      new Array(2),
      Array(9).fill(1),
      Array(200).fill(1),
    ].concat([
      [2 ** 32, 2 ** 30],
      [2 ** 32, 2 ** 32],
      [274177, 67280421310721],
    ] as never[]),
  );

/** A list of `length` whole numbers of at least `min`. */
export const wholes = (right: number[], min: number): Argument =>
  argument(right, [
    "111",
    3,
    null,
    {},
    [],
    right.slice(1),
    [...right, 1],
    ...[min - 1, 1.5, Number.NaN, Infinity, "1"].map((bad) => [bad, ...right.slice(1)]),
  ]);

/** null for an argument means that it is left out. */
export function orNull({ right, wrong, odd }: Argument): Argument {
  return argument(
    right,
    wrong.filter((value) => value !== null && value !== undefined),
    [...odd, null],
  );
}

/** An object of named arguments; those in `required` can't be left out. */
export function options(entries: Record<string, Argument>, required: string[] = []): Argument {
  const right = Object.fromEntries(Object.entries(entries).map(([key, { right }]) => [key, right]));
  const without = required.map((key) => Object.fromEntries(Object.entries(right).filter(([k]) => k !== key)));
  const replaced = (pick: "wrong" | "odd") =>
    Object.entries(entries).flatMap(([key, entry]) =>
      // An option of undefined is one that was left out.
      entry[pick].filter((value) => pick === "odd" || value !== undefined).map((value) => ({ ...right, [key]: value })),
    );
  return argument(right, [null, 3, "x", [], { ...right, bogus: 1 }, ...without, ...replaced("wrong")], replaced("odd"));
}

/** A list of tensors, f32 and of these shapes, which has to go with other lists. */
export function tensors(...shapes: number[][]): Argument {
  const entries = shapes.map((s) => tensor(s));
  const right = entries.map((entry) => entry.right);
  const replaced = (values: unknown[]) => values.map((value) => [value, ...right.slice(1)]);
  return argument(right, [null, 3, "x", {}, ...replaced(entries[0].wrong)], replaced(entries[0].odd));
}

/** {@link tensors} that must be as many and as large as those of another list. */
export function matching(...shapes: number[][]): Argument {
  const { right, wrong, odd } = tensors(...shapes);
  const list = right as unknown[];
  const shorter = [list.slice(1), [...list, list[0]], [empty([1]), ...list.slice(1)]];
  return argument(right, [...wrong, ...shorter, [empty(shapes[0], { dtype: "u8" }), ...list.slice(1)]], odd);
}

const shown = (value: unknown): string => {
  try {
    return typeof value === "object" && value !== null && !(value instanceof Tensor)
      ? JSON.stringify(value)
      : String(value);
  } catch {
    return typeof value;
  }
};

/** Calls `run` with every wrong argument: an LtxError each time, at once, and no byte is left behind. */
export async function refusesWrong(run: (...values: never[]) => unknown, entries: Argument[]): Promise<void> {
  const right = entries.map((entry) => entry.right);
  const call = (values: unknown[]) => run(...(values as never[]));
  const cpu = device();
  // The valid call itself, without which the others would prove nothing.
  release(await call(right), right);
  await cpu.synchronize();
  for (const [i, entry] of entries.entries()) {
    for (const kind of ["wrong", "odd"] as const) {
      for (const value of entry[kind]) {
        const values = right.map((r, j) => (i === j ? value : r));
        const before = cpu.memory().live;
        const what = `argument ${i} = ${shown(value)}`;
        let error: unknown;
        let result: unknown;
        try {
          result = await call(values);
        } catch (thrown) {
          error = thrown;
        }
        if (error === undefined) {
          expect(kind, `${what} passes`).toBe("odd");
          release(result, values);
          continue;
        }
        expect(error, what).toBeInstanceOf(LtxError);
        expect((error as LtxError).code, `${what}: ${(error as Error).message}`).not.toBe("native");
        expect(cpu.memory().live, `${what}: bytes left behind`).toBe(before);
      }
    }
  }
  await cpu.synchronize(); // no kernel failed either
}

function release(result: unknown, given: unknown[]): void {
  if (result instanceof Tensor && !given.includes(result)) result.dispose();
}
