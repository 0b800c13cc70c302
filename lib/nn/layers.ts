import { integer } from "../arguments.js";
import {
  batchNorm,
  type Conv3dOptions,
  conv3d,
  type LinearActivation,
  linear,
  type Modulation,
  normAct,
  sinusoid,
} from "../ops/index.js";
import { scope, type Tensor } from "../tensor/index.js";
import { Counter, type Initializer, Module, type Parameter, type StateBuffer } from "./module.js";
import { reflectEdges, replicateEdges, type SpatialPadding } from "./padding.js";

/** y = act(x Wᵀ + b), initialised as PyTorch's nn.Linear. */
export class Linear extends Module {
  weight: Parameter;
  bias: Parameter | null;

  constructor(inputs: number, outputs: number, init: Initializer, options: { bias?: boolean } = {}) {
    super();
    const bound = inputs > 0 ? 1 / Math.sqrt(inputs) : 0;
    this.weight = init.weight([outputs, inputs], bound);
    this.bias = options.bias === false ? null : init.uniform([outputs], bound);
  }

  forward(x: Tensor, activation: LinearActivation = "none"): Tensor {
    return linear(x, this.weight, this.bias, activation);
  }
}

/** A plain 3D convolution, initialised as PyTorch's nn.Conv3d; weight (O,T,Y,X,I) in memory. */
export class Conv3d extends Module {
  weight: Parameter;
  bias: Parameter | null;
  private _options: Conv3dOptions;

  constructor(
    inputs: number,
    outputs: number,
    kernel: readonly [number, number, number],
    init: Initializer,
    options: Conv3dOptions & { bias?: boolean } = {},
  ) {
    super();
    for (const [name, size] of Object.entries({ inputs, outputs })) integer("conv", name, size, 0);
    const fan = inputs * kernel[0] * kernel[1] * kernel[2];
    const bound = fan > 0 ? 1 / Math.sqrt(fan) : 0;
    this.weight = init.weight([outputs, ...kernel, inputs], bound);
    this.weight.layout = "conv";
    const { bias, ...geometry } = options;
    this.bias = bias === false ? null : init.uniform([outputs], bound);
    const { stride = [], padTime = [], padSpace = [] } = geometry;
    for (const size of stride) integer("conv", "stride", size, 1);
    for (const size of [...padTime, ...padSpace]) integer("conv", "padding", size, 0);
    this._options = geometry;
  }

  forward(x: Tensor, residual: Tensor | null = null): Tensor {
    return conv3d(x, this.weight, this.bias, this._options, residual);
  }
}

export interface Conv2dOptions {
  stride?: number;
  /** Zeros on each side of height and width. */
  padding?: number;
  bias?: boolean;
}

/** A 2D convolution over each frame of (B,F,H,W,C), initialised as PyTorch's nn.Conv2d; weight (O,1,Y,X,I) in memory. */
export class Conv2d extends Conv3d {
  constructor(inputs: number, outputs: number, kernel: number, init: Initializer, options: Conv2dOptions = {}) {
    const { stride = 1, padding = 0, bias } = options;
    super(inputs, outputs, [1, kernel, kernel], init, {
      stride: [1, stride, stride],
      padSpace: [padding, padding],
      bias,
    });
    this.weight.layout = "conv2d";
  }
}

/**
 * The reference's CausalConv3d: kernel k in time and space; time is padded by repeated frames, all in front when causal,
 * else half in front and half behind; space by zeros, repeated or reflected edges, k/2 on each side.
 */
export class CausalConv3d extends Module {
  conv: Conv3d;
  /** By how much a copy of the input is wider on each side; the kernel itself pads with zeros. */
  private _edges: number;
  private _widen: typeof replicateEdges;

  constructor(
    inputs: number,
    outputs: number,
    init: Initializer,
    options: {
      kernel?: number;
      stride?: readonly [number, number, number];
      causal?: boolean;
      spatialPadding?: SpatialPadding;
    } = {},
  ) {
    super();
    const { kernel = 3, stride = [1, 1, 1], causal = true, spatialPadding = "zeros" } = options;
    const half = Math.floor((kernel - 1) / 2);
    this._edges = spatialPadding === "zeros" ? 0 : Math.floor(kernel / 2);
    this._widen = spatialPadding === "reflect" ? reflectEdges : replicateEdges;
    const space = spatialPadding === "zeros" ? Math.floor(kernel / 2) : 0;
    this.conv = new Conv3d(inputs, outputs, [kernel, kernel, kernel], init, {
      stride,
      padTime: causal ? [kernel - 1, 0] : [half, half],
      padSpace: [space, space],
      replicate: true,
    });
  }

  forward(x: Tensor, residual: Tensor | null = null): Tensor {
    const edges = this._edges;
    if (edges === 0) return this.conv.forward(x, residual);
    return scope(() => {
      const wide = this._widen(x, 3, edges, edges);
      const wider = this._widen(wide, 2, edges, edges);
      wide.dispose(); // the tape, if any, holds what it needs
      return this.conv.forward(wider, residual);
    });
  }
}

/** Layer norm over channels (…, C), with affine parameters unless told otherwise. */
export class LayerNorm extends Module {
  weight: Parameter | null;
  bias: Parameter | null;

  constructor(
    channels: number,
    init: Initializer,
    private _options: { eps?: number; affine?: boolean } = {},
  ) {
    super();
    const affine = _options.affine !== false;
    this.weight = affine ? init.constant([channels], 1) : null;
    this.bias = affine ? init.constant([channels], 0) : null;
  }

  forward(x: Tensor, options: { modulation?: Modulation | null; activation?: "none" | "silu" } = {}): Tensor {
    return normAct(x, {
      kind: "layer_norm",
      eps: this._options.eps ?? 1e-6,
      weight: this.weight,
      bias: this.bias,
      ...options,
    });
  }
}

/** Batch norm over all positions of (…, C), as PyTorch's with momentum 0.1 and eps 1e-5. */
export class BatchNorm extends Module {
  weight: Parameter;
  bias: Parameter;
  running_mean: StateBuffer;
  running_var: StateBuffer;
  num_batches_tracked = new Counter();

  constructor(channels: number, init: Initializer) {
    super();
    this.weight = init.constant([channels], 1);
    this.bias = init.constant([channels], 0);
    this.running_mean = init.buffer([channels], 0);
    this.running_var = init.buffer([channels], 1);
  }

  /** Normalises by the statistics of x in training, which the running ones follow; else by the running ones. */
  forward(x: Tensor): Tensor {
    const { weight, bias, running_mean: runningMean, running_var: runningVar, training } = this;
    if (training) this.num_batches_tracked.value++;
    return batchNorm(x, { weight, bias, runningMean, runningVar, training });
  }
}

/**
 * PixArt's timestep embedding: 256 sinusoids, Linear, SiLU, Linear. Keys `timestep_embedder.linear_1|2`.
 */
export class TimestepEmbedding extends Module {
  timestep_embedder: Module & { linear_1: Linear; linear_2: Linear };

  constructor(width: number, init: Initializer) {
    super();
    this.timestep_embedder = new (class extends Module {
      linear_1 = new Linear(256, width, init);
      linear_2 = new Linear(width, width, init);
    })();
  }

  /** t (N) f32, already multiplied by 1000: (N, width) f32. */
  forward(t: Tensor): Tensor {
    const { linear_1, linear_2 } = this.timestep_embedder;
    return linear_2.forward(linear_1.forward(sinusoid(t, 256), "silu"));
  }
}
