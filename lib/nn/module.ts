import { integer } from "../arguments.js";
import { check, LtxError } from "../errors.js";
import * as native from "../native.js";
import { affine } from "../ops/elementwise.js";
import { normal, uniform } from "../ops/index.js";
import { type Device, type DType, keep, noGrad, type Shape, scope, Tensor } from "../tensor/index.js";

/**
 * How a parameter lies in a checkpoint, where that differs from memory: convolution weights are (O,I,T,Y,X) there, those
 * of 2D convolutions, which have one frame in memory, (O,I,Y,X).
 */
export type ParameterLayout = "plain" | "conv" | "conv2d";

/** A tensor of a module that is learned: f32, or bf16 where a product's weight is kept for inference alone. */
export class Parameter extends Tensor {
  layout: ParameterLayout = "plain";
  /** Whether an optimizer updates it. */
  trainable = true;

  /** Frees its gradient. */
  zeroGrad(): void {
    this.grad?.dispose();
    this.grad = null;
  }

  /** The shape under which checkpoints store it. */
  get checkpointShape(): Shape {
    if (this.layout === "plain") return this.shape;
    const [o, t, y, x, i] = this.shape;
    return this.layout === "conv" ? [o, i, t, y, x] : [o, i, y, x];
  }
}

/** A tensor of a module's state that is measured and not learned, such as a running average. f32. */
export class StateBuffer extends Tensor {}

/** A whole number of a module's state; int64 in checkpoints. One that a checkpoint does not hold stays as it is. */
export class Counter {
  value = 0;
}

/** What a state dict is made of. */
export type StateEntry = Parameter | StateBuffer | Counter;

export interface InitializerOptions {
  /** How the weights of products are stored. bf16 takes half of the memory and is for inference. Default f32. */
  weights?: "f32" | "bf16";
  /** false: nothing random is drawn, as a checkpoint follows; such parameters are unwritten memory till then. */
  values?: boolean;
}

/**
 * Fresh values, from a stream of their own for each parameter. One serves one model: when the memory runs out in the middle
 * of its construction, all that was made so far is freed, since nobody gets to own it.
 */
export class Initializer {
  private purpose = 0;
  private readonly made: Tensor[] = [];
  constructor(
    readonly device: Device,
    readonly seed = 0,
    readonly options: InitializerOptions = {},
  ) {
    integer("initializer", "seed", seed, 0);
  }

  private allocate<T extends Tensor>(
    kind: new (...args: ConstructorParameters<typeof Tensor>) => T,
    shape: Shape,
    dtype: DType = "f32",
  ): T {
    const id = this.whole(() => native.empty(this.device.handle, dtype, "parameters", shape));
    const made = keep(new kind(id, [...shape], dtype, this.device));
    this.made.push(made);
    return made;
  }

  /**
   * Runs `body`, a part of building the model; when it throws, all that was made so far is freed. What allocates does so by
   * itself; a model that checks its configuration while it is built needs it.
   */
  whole<T>(body: () => T): T {
    try {
      return body();
    } catch (error) {
      for (const tensor of this.made.splice(0)) tensor.dispose();
      throw error;
    }
  }

  private parameter(shape: Shape, dtype: "f32" | "bf16" = "f32"): Parameter {
    const parameter = this.allocate(Parameter, shape, dtype);
    native.markParameter(parameter.handle);
    parameter.requiresGrad = parameter.trainable = dtype === "f32";
    return parameter;
  }

  private fill(parameter: Parameter, draw: (purpose: number) => Tensor): Parameter {
    const purpose = this.purpose++;
    if (this.options.values !== false) {
      this.whole(() => noGrad(() => scope(() => native.run("cast", [draw(purpose).handle, parameter.handle], [1, 0]))));
    }
    return parameter;
  }

  private drawUniform(shape: Shape, bound: number): (purpose: number) => Tensor {
    const { seed, device } = this;
    return (purpose) => affine(uniform(shape, { seed, step: 0, purpose }, { device }), 2 * bound, -bound);
  }

  /** U(-bound, bound). */
  uniform(shape: Shape, bound: number): Parameter {
    return this.fill(this.parameter(shape), this.drawUniform(shape, bound));
  }

  /** U(-bound, bound) for the weight of a product, stored as {@link InitializerOptions.weights} says. */
  weight(shape: Shape, bound: number): Parameter {
    return this.fill(this.parameter(shape, this.options.weights), this.drawUniform(shape, bound));
  }

  private drawNormal(shape: Shape, std: number, mean: number): (purpose: number) => Tensor {
    const { seed, device } = this;
    return (purpose) => affine(normal(shape, { seed, step: 0, purpose }, { device }), std, mean);
  }

  /** N(mean, std²). */
  normal(shape: Shape, std: number, mean = 0): Parameter {
    return this.fill(this.parameter(shape), this.drawNormal(shape, std, mean));
  }

  /** Gives a parameter other values: N(mean, std²). */
  redraw(parameter: Parameter, std: number, mean = 0): void {
    this.fill(parameter, this.drawNormal(parameter.shape, std, mean));
  }

  constant(shape: Shape, value: number): Parameter {
    this.purpose++; // each parameter has a stream of its own, drawn from or not
    const parameter = this.parameter(shape);
    native.run("fill", [parameter.handle], [value]);
    return parameter;
  }

  buffer(shape: Shape, value: number): StateBuffer {
    const buffer = this.allocate(StateBuffer, shape);
    native.run("fill", [buffer.handle], [value]);
    return buffer;
  }
}

/**
 * A part of a model. Its parameters, buffers and sub-modules are its own properties (arrays of modules too), so property
 * names are state-dict keys; a property that starts with `_` is not part of the state.
 */
export abstract class Module {
  /** Whether dropout, batch norm and the like act as in training. */
  training = true;

  /** Name and entry of the whole state, depth first, in the order of definition. */
  *namedState(prefix = ""): Generator<[string, StateEntry]> {
    for (const [key, value] of Object.entries(this)) {
      if (key.startsWith("_")) continue;
      yield* walk(`${prefix}${key}`, value);
    }
  }

  /** Name and parameter, depth first, in the order of definition. */
  *namedParameters(prefix = ""): Generator<[string, Parameter]> {
    for (const [key, value] of this.namedState(prefix)) if (value instanceof Parameter) yield [key, value];
  }

  /** Switches this module and those in it to training, or to evaluation. */
  train(on = true): this {
    this.training = on;
    for (const module of Object.values(this).flatMap(modulesIn)) module.train(on);
    return this;
  }

  parameters(): Parameter[] {
    return [...this.namedParameters()].map(([, parameter]) => parameter);
  }

  get device(): Device {
    return this.parameters()[0].device;
  }

  /** The number of values in all parameters. */
  get parameterCount(): number {
    return this.parameters().reduce((n, p) => n + p.size, 0);
  }

  /** Switches gradients on or off for all parameters but those that are stored in bf16, which have none. */
  requiresGrad(on: boolean): this {
    for (const parameter of this.parameters()) parameter.requiresGrad = on && parameter.dtype === "f32";
    return this;
  }

  zeroGrad(): void {
    for (const parameter of this.parameters()) parameter.zeroGrad();
  }

  /** Values by key, in the shapes and the order of axes of the references' checkpoints. */
  async stateDict(prefix = ""): Promise<Map<string, { shape: Shape; data: Float32Array }>> {
    const entries = [...this.namedState(prefix)];
    const values = await Promise.all(entries.map(([, item]) => checkpointValues(item)));
    return new Map(entries.map(([key, item], i) => [key, { shape: checkpointShape(item), data: values[i] }]));
  }

  /**
   * Loads values by key. Nothing is written unless every key is there with its shape; only counters may be missing.
   * @throws {LtxError} `checkpoint` listing the first keys that are missing, unexpected or of another shape.
   */
  loadStateDict(state: ReadonlyMap<string, { shape: Shape; data: Float32Array }>, prefix = ""): void {
    const mine = new Map(this.namedState(prefix));
    checkState(mine, state);
    for (const [key, item] of mine) {
      const entry = state.get(key);
      if (!entry) continue;
      if (item instanceof Counter) item.value = entry.data[0];
      else item.write(item instanceof Parameter ? fromCheckpoint(item, entry.data) : entry.data);
    }
  }

  dispose(): void {
    for (const [, item] of this.namedState()) if (item instanceof Tensor) item.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function* walk(key: string, value: unknown): Generator<[string, StateEntry]> {
  if (value instanceof Parameter || value instanceof StateBuffer || value instanceof Counter) yield [key, value];
  else if (value instanceof Module) yield* value.namedState(`${key}.`);
  else if (Array.isArray(value)) for (const [i, item] of value.entries()) yield* walk(`${key}.${i}`, item);
}

function modulesIn(value: unknown): Module[] {
  if (value instanceof Module) return [value];
  return Array.isArray(value) ? value.flatMap(modulesIn) : [];
}

/** The shape under which checkpoints store an entry. */
export function checkpointShape(item: StateEntry): Shape {
  if (item instanceof Counter) return [];
  return item instanceof Parameter ? item.checkpointShape : item.shape;
}

/**
 * Compares what was found with the state that it is to be loaded into.
 * @param optional keys that may be missing, besides those of counters
 * @param where what was found is called in the message
 * @throws {LtxError} `checkpoint` listing the first keys that are missing, unexpected or of another shape.
 */
export function checkState(
  mine: ReadonlyMap<string, StateEntry>,
  found: ReadonlyMap<string, { shape: Shape; data?: { length: number } }>,
  optional: (key: string) => boolean = () => false,
  where = "the checkpoint",
): void {
  const problems: string[] = [];
  for (const [key, item] of mine) {
    const entry = found.get(key);
    const expected = checkpointShape(item);
    const size = item instanceof Counter ? 1 : item.size;
    if (!entry) {
      if (!(item instanceof Counter) && !optional(key)) problems.push(`${key} is missing (expected [${expected}])`);
    } else if (entry.shape.join() !== expected.join())
      problems.push(`${key} has shape [${entry.shape}], expected [${expected}]`);
    else {
      const length = entry.data?.length ?? size; // read once: data may be made when it is read
      if (length !== size) problems.push(`${key} holds ${length} values for shape [${expected}]`);
    }
  }
  for (const key of found.keys()) if (!mine.has(key)) problems.push(`${key} is not part of this model`);
  if (problems.length > 0) {
    const shown = problems.slice(0, 5).join("; ");
    const more = problems.length > 5 ? ` and ${problems.length - 5} more` : "";
    throw new LtxError("checkpoint", `[state dict] ${where} does not fit the model: ${shown}${more}`);
  }
}

async function checkpointValues(item: StateEntry): Promise<Float32Array> {
  if (item instanceof Counter) return Float32Array.of(item.value);
  const values = (await item.read()) as Float32Array;
  return item instanceof Parameter ? toCheckpoint(item, values) : values;
}

/** Memory order to checkpoint order: (O,T,Y,X,I) to (O,I,T,Y,X). */
export function toCheckpoint(parameter: Parameter, data: Float32Array): Float32Array {
  if (parameter.layout === "plain") return data;
  const [o, t, y, x, i] = parameter.shape;
  return swapInner(data, o, t * y * x, i);
}

/** Checkpoint order to memory order. */
export function fromCheckpoint(parameter: Parameter, data: Float32Array): Float32Array {
  if (parameter.layout === "plain") return data;
  const [o, t, y, x, i] = parameter.shape;
  return swapInner(data, o, i, t * y * x);
}

/** (outer, a, b) to (outer, b, a). */
function swapInner(data: Float32Array, outer: number, a: number, b: number): Float32Array {
  check(
    data.length === outer * a * b,
    "shape_mismatch",
    () => `[state dict] ${data.length} values do not fit ${outer}·${a}·${b}`,
  );
  const result = new Float32Array(data.length);
  for (let o = 0; o < outer; o++) {
    const base = o * a * b;
    for (let i = 0; i < a; i++) for (let j = 0; j < b; j++) result[base + j * a + i] = data[base + i * b + j];
  }
  return result;
}
