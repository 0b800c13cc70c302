/** What the kernel lab measures: one op on one problem, described so that a peer can build the same. */
import { Initializer } from "../../lib/nn/index.js";
import { affine, normal, uniform } from "../../lib/ops/index.js";
import { type Device, empty, launch, type Operand, type Shape, scope, Tensor } from "../../lib/tensor/index.js";
import type { BenchDtype } from "../protocol.js";

/** What a problem is for: the emulator and quick checks, any machine, a CPU alone, or a GPU alone. */
export type Scale = "tiny" | "small" | "cpu" | "large";

/** Named extents and options of a problem, 0 or 1 for no or yes. The peer reads them too. */
export type Sizes = Readonly<Record<string, number>>;

/** What the peer needs to know of a case. */
export interface CaseSpec {
  id: string;
  op: string;
  /** The problem in words. */
  problem: string;
  dtype: BenchDtype;
  sizes: Sizes;
}

export interface KernelCase extends CaseSpec {
  scale: Scale;
  /** 0 for the first dtype of a problem: where time is short, the others go first. */
  rank: number;
  /** Floating-point operations of the matrix products and convolutions; 0 for ops that only move bytes. */
  flops: number;
  prepare(bench: Bench): Prepared;
}

export interface Prepared {
  /** Queues the work once. */
  run(): void;
  /** What must be moved at least: each operand once. */
  bytes: number;
}

export interface Problem<S extends Sizes> {
  scale: Scale;
  name: string;
  sizes: S;
  /** Both unless given. */
  dtypes?: readonly BenchDtype[];
}

/** The cases of one op: each problem in each dtype. */
export function define<S extends Sizes>(
  op: string,
  problems: readonly Problem<S>[],
  flops: (sizes: S) => number,
  prepare: (bench: Bench, sizes: S) => Prepared,
): KernelCase[] {
  return problems.flatMap(({ scale, name: problem, sizes, dtypes = ["bf16", "f32"] }) =>
    dtypes.map((dtype, rank) => ({
      rank,
      id: `${op} ${problem} ${dtype}`,
      op,
      problem,
      dtype,
      sizes,
      scale,
      flops: flops(sizes),
      prepare: (bench: Bench) => prepare(bench, sizes),
    })),
  );
}

/** Nothing but bytes. */
export const noFlops = () => 0;

/** Makes the operands of one case, and frees them all after it. */
export class Bench {
  private readonly tensors: Tensor[] = [];
  private readonly init: Initializer;
  private purpose = 0;

  constructor(
    readonly device: Device,
    readonly dtype: BenchDtype,
  ) {
    this.init = new Initializer(device, 1);
  }

  private own<T extends Tensor>(tensor: T): T {
    this.tensors.push(tensor);
    return tensor;
  }

  /** An activation: standard normal values. */
  input(shape: Shape, dtype: BenchDtype = this.dtype): Tensor {
    const key = { seed: 1, step: 0, purpose: this.purpose++ };
    return this.own(normal(shape, key, { dtype, device: this.device }));
  }

  /** Values between two bounds, f32. */
  between(shape: Shape, low: number, high: number): Tensor {
    const key = { seed: 2, step: 0, purpose: this.purpose++ };
    return this.own(scope(() => affine(uniform(shape, key, { device: this.device }), high - low, low)));
  }

  /** A weight, f32 as models hold it, so that a backend keeps its copy in bf16 as in training. */
  parameter(shape: Shape, bound = 0.05): Tensor {
    return this.own(this.init.uniform(shape, bound));
  }

  values(data: Float32Array, shape: Shape): Tensor {
    return this.own(Tensor.from(data, shape, { device: this.device }));
  }

  /** Memory for a result. */
  output(shape: Shape, dtype: BenchDtype = this.dtype): Tensor {
    return this.own(empty(shape, { dtype, device: this.device }));
  }

  /** A single op on operands that stay where they are: neither checks nor allocation are part of the time. */
  kernel(op: string, operands: readonly Operand[], scalars: readonly number[] = []): Prepared {
    const present = new Set(operands.flatMap((operand) => (operand ? [isTensor(operand) ? operand : operand[0]] : [])));
    return { run: () => launch(op, operands, scalars), bytes: byteLength(...present) };
  }

  dispose(): void {
    for (const tensor of this.tensors) tensor.dispose();
  }
}

const isTensor = (operand: Tensor | readonly [Tensor, Shape]): operand is Tensor => operand instanceof Tensor;

export function byteLength(...tensors: readonly Tensor[]): number {
  return tensors.reduce((sum, { size, dtype }) => sum + size * (dtype === "bf16" ? 2 : 4), 0);
}
