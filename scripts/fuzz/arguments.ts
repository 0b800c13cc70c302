/** Arguments of functions: right ones by a recipe, one or two of them then changed. */
import { LtxError } from "../../lib/errors.js";
import { type device, noGrad, Tensor } from "../../lib/tensor/index.js";
import type { Random } from "./random.js";
import { must } from "./target.js";

type Kind = "whole" | "number" | "text" | "choice" | "flag";

/** A value of which is known what may stand in its place. */
class Leaf {
  constructor(
    readonly kind: Kind,
    readonly value: unknown,
    readonly known: readonly string[] = [],
  ) {}
}

/** A whole number; any fraction in its place is wrong. */
export const whole = (value: number): Leaf => new Leaf("whole", value);
export const number = (value: number): Leaf => new Leaf("number", value);
export const text = (value: string): Leaf => new Leaf("text", value);
export const flag = (value: boolean): Leaf => new Leaf("flag", value);
/** One of these names; the first is taken. */
export const choice = (...known: string[]): Leaf => new Leaf("choice", known[0], known);
export const wholes = (...values: number[]): Leaf[] => values.map(whole);

/** Makes tensors for one case, which end with it. */
export class Maker {
  readonly made: Tensor[] = [];
  constructor(
    readonly random: Random,
    readonly device: import("../../lib/tensor/index.js").Device,
  ) {}

  private make(dtype: "f32" | "bf16" | "i32" | "u8", shape: readonly number[], value: (i: number) => number): Tensor {
    const size = shape.reduce((n, d) => n * d, 1);
    const values = Array.from({ length: size }, (_, i) => value(i));
    const tensor = Tensor.from(values, shape, { dtype, device: this.device });
    this.made.push(tensor);
    return tensor;
  }

  f32 = (...shape: number[]): Tensor => this.make("f32", shape, (i) => ((i * 7) % 11) / 11 - 0.3);
  bf16 = (...shape: number[]): Tensor => this.make("bf16", shape, (i) => ((i * 5) % 8) / 8);
  i32 = (...shape: number[]): Tensor => this.make("i32", shape, (i) => i % 2);
  u8 = (...shape: number[]): Tensor => this.make("u8", shape, (i) => i % 256);
  /** f32, at times bf16. */
  float = (...shape: number[]): Tensor => (this.random.chance(0.25) ? this.bf16(...shape) : this.f32(...shape));

  gone(): Tensor {
    const tensor = this.f32(2);
    tensor.dispose();
    return tensor;
  }

  dispose(): void {
    for (const tensor of this.made) {
      tensor.grad?.dispose();
      tensor.dispose();
    }
  }
}

/** Anything that a program in JavaScript may pass. */
export function anything(random: Random, make: Maker): unknown {
  const size = () => random.pick([0, 1, 2, 3, 4, 5, 8]);
  const shape = () => Array.from({ length: random.below(6) }, size);
  const makers: (() => unknown)[] = [
    () => undefined,
    () => null,
    () => random.edge(),
    () => random.edge(),
    () =>
      random.pick([
        Number.NaN,
        Number.POSITIVE_INFINITY,
        Number.NEGATIVE_INFINITY,
        -1,
        0.5,
        1.5,
        -0,
        1e-300,
        1e300,
        2 ** 53,
        -1e7,
      ]),
    () =>
      random.pick([
        "",
        "foo",
        "toString",
        "__proto__",
        "2GB",
        "0",
        "f32",
        "float32",
        "cpu",
        "x".repeat(10_000),
        "\0",
        "\ud800",
        "é",
      ]),
    () => random.pick([true, false]),
    () =>
      random.pick([
        [],
        {},
        [[]],
        [null],
        [1, "2"],
        new Array(3),
        Array(200).fill(1),
        [2 ** 32, 2 ** 32],
        [2 ** 32, 2 ** 30],
        [2 ** 53],
        [-1, 2],
        [1.5],
        [Number.NaN],
      ]),
    () => Object.create(null),
    () => 1n,
    () => Symbol("s"),
    () => () => undefined,
    () => new Date(0),
    () => new Map([["a", 1]]),
    () =>
      random.pick([
        new Float32Array(4),
        new Float64Array(2),
        new Uint8Array(8),
        new Int32Array(1),
        new BigInt64Array(2),
        new DataView(new ArrayBuffer(8)),
        new ArrayBuffer(8),
      ]),
    () => new Float32Array(new SharedArrayBuffer(16)),
    () => {
      const array = new Float32Array(4);
      structuredClone(array.buffer, { transfer: [array.buffer] });
      return array;
    },
    () => make.float(...shape()),
    () => make.float(...shape()),
    () => make.i32(...shape()),
    () => make.u8(...shape()),
    () => make.gone(),
    () => ({ handle: 1, shape: [2], dtype: "f32", size: 2, dims: 1, device: make.device, dispose() {} }),
    () => Object.create(Tensor.prototype),
    () => make.device,
    () => ({ name: "cpu", handle: 0 }),
    () => Promise.resolve(1),
    () => new Proxy({}, {}),
    () => AbortSignal.abort(),
    // Relative ones alone: some functions write where they are told to.
    () => random.pick(["missing.safetensors", ".", "a.png", "x.yaml", "missing/x.mp4"]),
  ];
  return random.pick(makers)();
}

/** Why a value in a leaf's place, or a tensor's, has to be refused; null when it may be taken. */
function wrong(before: unknown, after: unknown): string | null {
  if (after === undefined || after === null) return null; // which stand for something left out
  const shown = () => (typeof after === "object" || typeof after === "function" ? typeof after : String(after));
  if (before instanceof Leaf) {
    const { kind, value, known } = before;
    const right = {
      whole: () => Number.isSafeInteger(after),
      number: () => typeof after === "number",
      text: () => typeof after === "string",
      flag: () => typeof after === "boolean",
      choice: () => known.includes(after as string),
    }[kind];
    return right() ? null : `${shown()} in place of ${value}`;
  }
  if (before instanceof Tensor) {
    if (after instanceof Tensor && Object.hasOwn(after, "alive"))
      return after.alive ? null : "a tensor that was disposed";
    return `${shown()} in place of a tensor`;
  }
  if (Array.isArray(before)) return Array.isArray(after) ? null : `${shown()} in place of a list`;
  return null;
}

type Holder = unknown[] | Record<string, unknown>;

const isPlain = (value: unknown): value is Holder =>
  Array.isArray(value) ||
  (typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype);

function places(holder: Holder, out: [Holder, string | number][] = []): [Holder, string | number][] {
  for (const key of Array.isArray(holder) ? holder.keys() : Object.keys(holder)) {
    out.push([holder, key]);
    const value = (holder as Record<string | number, unknown>)[key];
    if (isPlain(value)) places(value, out);
  }
  return out;
}

function resolved(value: unknown): unknown {
  if (value instanceof Leaf) return value.value;
  if (Array.isArray(value)) return value.map(resolved);
  if (isPlain(value)) return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolved(item)]));
  return value;
}

const copied = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(copied);
  return isPlain(value) ? Object.fromEntries(Object.entries(value).map(([key, item]) => [key, copied(item)])) : value;
};

/** The arguments after up to three changes, and why they have to be refused, where that is certain. */
export function mutateArguments(
  random: Random,
  make: Maker,
  recipe: readonly unknown[],
): { args: unknown[]; mustFail: string | null } {
  // Recipes hand out objects that later cases use too.
  const args = recipe.map(copied);
  let mustFail: string | null = null;
  const count = random.pick([0, 1, 1, 1, 1, 2, 3]);
  for (let i = 0; i < count; i++) {
    const all = places(args);
    if (all.length === 0) break;
    const [holder, key] = random.pick(all);
    const at = holder as Record<string | number, unknown>;
    const before = at[key];
    if (isPlain(before) && !Array.isArray(before) && random.chance(0.4)) {
      const name = random.pick([...Object.keys(before), "x"]) + random.pick(["_", "s", "X"]);
      if (name in before) continue;
      before[name] = anything(random, make);
      continue;
    }
    if (Array.isArray(before) && random.chance(0.4)) {
      if (before.length > 0 && random.chance(0.5)) before.splice(random.below(before.length), 1);
      else before.push(...Array.from({ length: random.pick([1, 1, 9]) }, () => before[0] ?? 1));
      continue;
    }
    const after =
      before instanceof Leaf && (before.kind === "number" || before.kind === "whole") && random.chance(0.5)
        ? random.pick([-1, 0, 1, 2, 0.5, -1e7, Number.NaN, Number.POSITIVE_INFINITY, random.edge()])
        : anything(random, make);
    at[key] = after;
    // A second change may take the place of the first one, which makes what stands there hard to judge.
    if (count === 1) mustFail = wrong(before, after);
  }
  if (random.chance(0.05)) args.length = random.below(args.length + 1);
  const complete = args.length === recipe.length;
  return { args: args.map(resolved), mustFail: complete ? mustFail : null };
}

/** Follows a result to its end: awaits it, takes the first of what it yields, and lets go of the tensors in it. */
export async function finish(result: unknown): Promise<void> {
  const value = await result;
  if (value === null || (typeof value !== "object" && typeof value !== "function")) return;
  if (Symbol.asyncIterator in value && typeof (value as AsyncGenerator).next === "function") {
    const events = value as AsyncGenerator;
    for (let i = 0; i < 3; i++) {
      const next = await events.next();
      if (next.done) break;
    }
    await events.return?.(undefined);
    return;
  }
  letGo(value, 3);
}

function letGo(value: unknown, depth: number): void {
  if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return;
  if (value instanceof Tensor) {
    if (Object.hasOwn(value, "alive")) value.dispose();
    return;
  }
  const { dispose, close } = value as { dispose?: unknown; close?: unknown };
  if (typeof dispose === "function") return void dispose.call(value);
  if (typeof close === "function") return void Promise.resolve(close.call(value)).catch(() => {});
  if (depth > 0 && (Array.isArray(value) || isPlain(value) || value instanceof Map)) {
    for (const item of value instanceof Map ? value.values() : Object.values(value)) letGo(item, depth - 1);
  }
}

/** That kernels still do what they should: what one call did wrong must not reach another one's. */
export async function checkSanity(cpu: ReturnType<typeof device>): Promise<void> {
  const [a, b] = [Tensor.from([1, 2, 3], [3], { device: cpu }), Tensor.from([10, 20, 30], [3], { device: cpu })];
  const { add } = await import("../../lib/ops/index.js");
  const sum = noGrad(() => add(a, b));
  const values = await sum.read();
  for (const tensor of [a, b, sum]) tensor.dispose();
  must(values.join() === "11,22,33", () => `[1,2,3] + [10,20,30] is [${values}] after it`);
}

/** Calls a function with arguments of a recipe, changed or not, and judges how it took them. Of a `loose` recipe, which may be wrong itself, nothing has to be refused. */
export async function tryCall(
  random: Random,
  make: Maker,
  call: (...args: unknown[]) => unknown,
  recipe: readonly unknown[],
  { loose = false } = {},
): Promise<void> {
  const { args, mustFail: certain } = mutateArguments(random, make, recipe);
  const mustFail = loose ? null : certain;
  const cpu = make.device;
  try {
    await finish(call(...args));
    must(mustFail === null, () => `accepted ${mustFail}`);
  } catch (error) {
    await cpu.synchronize().catch((later) => {
      if (!(later instanceof LtxError)) throw later;
    });
    throw error;
  }
  await cpu.synchronize();
}
