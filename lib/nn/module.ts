import { check, LtxError } from "../errors.js";
import * as native from "../native.js";
import { affine } from "../ops/elementwise.js";
import { normal, uniform } from "../ops/index.js";
import { type Device, empty, keep, noGrad, type Shape, scope, Tensor } from "../tensor/index.js";

/**
 * How a parameter lies in a checkpoint, where that differs from memory: convolution weights are (O,I,T,Y,X) there, those
 * of 2D convolutions, which have one frame in memory, (O,I,Y,X).
 */
export type ParameterLayout = "plain" | "conv" | "conv2d";

/** A trainable f32 tensor of a module. */
export class Parameter extends Tensor {
  layout: ParameterLayout = "plain";
  /** Whether an optimizer updates it. */
  trainable = true;

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

/** Fresh values, from a stream of their own for each parameter. */
export class Initializer {
  private purpose = 0;
  constructor(
    readonly device: Device,
    readonly seed = 0,
  ) {}

  private allocate<T extends Tensor>(kind: new (...args: ConstructorParameters<typeof Tensor>) => T, shape: Shape): T {
    return keep(new kind(native.empty(this.device.handle, "f32", "parameters", shape), [...shape], "f32", this.device));
  }

  private make(shape: Shape, draw: (purpose: number) => Tensor): Parameter {
    const parameter = this.allocate(Parameter, shape);
    native.markParameter(parameter.handle);
    parameter.requiresGrad = true;
    this.fill(parameter, draw);
    return parameter;
  }

  private fill(parameter: Parameter, draw: (purpose: number) => Tensor): void {
    const purpose = this.purpose++;
    noGrad(() => scope(() => native.run("cast", [draw(purpose).handle, parameter.handle], [1, 0])));
  }

  /** U(-bound, bound). */
  uniform(shape: Shape, bound: number): Parameter {
    const { seed, device } = this;
    return this.make(shape, (purpose) =>
      affine(uniform(shape, { seed, step: 0, purpose }, { device }), 2 * bound, -bound),
    );
  }

  private drawNormal(shape: Shape, std: number, mean: number): (purpose: number) => Tensor {
    const { seed, device } = this;
    return (purpose) => affine(normal(shape, { seed, step: 0, purpose }, { device }), std, mean);
  }

  /** N(mean, std²). */
  normal(shape: Shape, std: number, mean = 0): Parameter {
    return this.make(shape, this.drawNormal(shape, std, mean));
  }

  /** Gives a parameter other values: N(mean, std²). */
  redraw(parameter: Parameter, std: number, mean = 0): void {
    this.fill(parameter, this.drawNormal(parameter.shape, std, mean));
  }

  constant(shape: Shape, value: number): Parameter {
    const { device } = this;
    return this.make(shape, () => {
      const y = empty(shape, { device });
      native.run("fill", [y.handle], [value]);
      return y;
    });
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

  /** Switches gradients on or off for all parameters. */
  requiresGrad(on: boolean): this {
    for (const parameter of this.parameters()) parameter.requiresGrad = on;
    return this;
  }

  zeroGrad(): void {
    for (const parameter of this.parameters()) {
      parameter.grad?.dispose();
      parameter.grad = null;
    }
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
    const problems: string[] = [];
    for (const [key, item] of mine) {
      const entry = state.get(key);
      const expected = checkpointShape(item);
      const size = item instanceof Counter ? 1 : item.size;
      if (!entry) {
        if (!(item instanceof Counter)) problems.push(`${key} is missing (expected [${expected}])`);
      } else if (entry.shape.join() !== expected.join())
        problems.push(`${key} has shape [${entry.shape}], expected [${expected}]`);
      else if (entry.data.length !== size)
        problems.push(`${key} holds ${entry.data.length} values for shape [${expected}]`);
    }
    for (const key of state.keys()) if (!mine.has(key)) problems.push(`${key} is not part of this model`);
    if (problems.length > 0) {
      const shown = problems.slice(0, 5).join("; ");
      const more = problems.length > 5 ? ` and ${problems.length - 5} more` : "";
      throw new LtxError("checkpoint", `the checkpoint does not fit the model: ${shown}${more}`);
    }
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

function checkpointShape(item: StateEntry): Shape {
  if (item instanceof Counter) return [];
  return item instanceof Parameter ? item.checkpointShape : item.shape;
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
