import { check } from "../../../lib/errors.js";
import { Initializer, type Module, toCheckpoint } from "../../../lib/nn/index.js";
import { add, mul, sum } from "../../../lib/ops/index.js";
import { backward, device, scope, Tensor } from "../../../lib/tensor/index.js";
import type { Fixture } from "./fixture.js";

/** Fresh values for modules that a fixture then loads its own into. */
export const init = (): Initializer => new Initializer(device());

/** A tensor of the file as a constant. */
export const constant = (fixture: Fixture, name: string): Tensor =>
  Tensor.from(fixture.data(name), fixture.shape(name));

/** A tensor of the file whose gradient is wanted. */
export function leaf(fixture: Fixture, name: string): Tensor {
  const tensor = constant(fixture, name);
  tensor.requiresGrad = true;
  return tensor;
}

/** The gradients of Σ output · cotangent over all pairs, left in the leaves. */
export function backwardFrom(pairs: readonly (readonly [output: Tensor, cotangent: Tensor])[]): void {
  backward(pairs.map(([output, cotangent]) => sum(mul(output, cotangent))).reduce(add));
}

export interface Evaluated {
  /** By what follows `output/`. */
  output?: Record<string, Tensor>;
  /** Leaves by what follows `grad_input/`. */
  input?: Record<string, Tensor>;
}

/**
 * Runs `body` and reads the tensors that it returns, the gradients of its leaves and those of the module's parameters
 * (zeros where none flowed) under the names of a fixture, the latter behind `grad/` and `prefix`. All of it is freed.
 */
export async function evaluate(
  module: Module | null,
  body: () => Evaluated,
  prefix = "",
): Promise<Map<string, Float32Array>> {
  try {
    const { output = {}, input = {} } = scope(body);
    const result = new Map<string, Float32Array>();
    for (const [name, tensor] of Object.entries(output)) result.set(`output/${name}`, await floats(tensor));
    for (const [name, tensor] of Object.entries(input)) result.set(`grad_input/${name}`, await gradient(tensor));
    for (const [key, parameter] of module?.namedParameters(`grad/${prefix}`) ?? []) {
      result.set(key, toCheckpoint(parameter, await gradient(parameter)));
    }
    for (const tensor of [...Object.values(output), ...Object.values(input)]) tensor.dispose();
    return result;
  } finally {
    module?.dispose();
  }
}

const floats = async (tensor: Tensor): Promise<Float32Array> => Float32Array.from(await tensor.read());

const gradient = async (tensor: Tensor): Promise<Float32Array> =>
  tensor.grad ? floats(tensor.grad) : new Float32Array(tensor.size);

/** Throws unless `config[key]` is one of `values`: what the library does not offer must not pass unnoticed. */
export function expectOption(fixture: Fixture, key: string, ...values: readonly unknown[]): void {
  const value = fixture.config[key];
  check(value === undefined || values.includes(value), "unavailable", () => {
    return `[golden] ${fixture.name}: ${key} ${JSON.stringify(value)} is not supported, only ${JSON.stringify(values)}`;
  });
}
