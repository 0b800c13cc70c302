import { check } from "../../errors.js";
import { type Initializer, LayerNorm, Module, type Parameter } from "../../nn/index.js";
import { type NormOptions, normAct } from "../../ops/index.js";
import type { Tensor } from "../../tensor/index.js";

/** The norms of a VAE configuration. */
export type VaeNormKind = "group_norm" | "pixel_norm" | "layer_norm";

/** What runs in the same pass as the norm. */
export type FusedOptions = Pick<NormOptions, "modulation" | "activation">;

/** x / √(mean over channels of x² + 1e-8); no parameters. */
export class PixelNorm extends Module {
  forward(x: Tensor, fused: FusedOptions = {}): Tensor {
    return normAct(x, { kind: "pixel_norm", eps: 1e-8, ...fused });
  }
}

/** Group norm over all positions of a sample. */
export class GroupNorm extends Module {
  weight: Parameter;
  bias: Parameter;

  constructor(
    channels: number,
    private _groups: number,
    private _eps: number,
    init: Initializer,
  ) {
    super();
    check(channels % _groups === 0, "invalid_argument", () => {
      return `[video vae] group_norm cannot split ${channels} channels into norm_num_groups ${_groups}: choose a divisor`;
    });
    this.weight = init.constant([channels], 1);
    this.bias = init.constant([channels], 0);
  }

  forward(x: Tensor, fused: FusedOptions = {}): Tensor {
    const { weight, bias, _eps: eps, _groups: groups } = this;
    return normAct(x, { kind: "group_norm", eps, groups, weight, bias, ...fused });
  }
}

/** Layer norm over channels, one level deeper than nn's, as its keys (`norm.weight`, `norm.bias`) are in checkpoints. */
export class ChannelNorm extends Module {
  norm: LayerNorm;

  constructor(channels: number, eps: number, init: Initializer) {
    super();
    this.norm = new LayerNorm(channels, init, { eps });
  }

  forward(x: Tensor, fused: FusedOptions = {}): Tensor {
    return this.norm.forward(x, fused);
  }
}

export type Norm = PixelNorm | GroupNorm | ChannelNorm;

/** The norm of a kind; pixel norm has an epsilon of its own. */
export function createNorm(
  kind: VaeNormKind,
  channels: number,
  init: Initializer,
  options: { groups: number; eps: number },
): Norm {
  switch (kind) {
    case "pixel_norm":
      return new PixelNorm();
    case "group_norm":
      return new GroupNorm(channels, options.groups, options.eps, init);
    case "layer_norm":
      return new ChannelNorm(channels, options.eps, init);
  }
}
