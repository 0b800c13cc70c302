/** The patch discriminators of pix2pix, over images and over videos (reference NLayerDiscriminator and …3D). */
import { check } from "../errors.js";
import { BatchNorm, Conv2d, Conv3d, type Initializer, Module } from "../nn/index.js";
import { cast, leakyRelu } from "../ops/index.js";
import { scope, type Tensor } from "../tensor/index.js";

export interface DiscriminatorOptions {
  inputChannels: number;
  /** Maps of logits; 1 unless given. */
  outputChannels?: number;
  /** Strided convolutions; 3 unless given. */
  layers?: number;
  /** Channels behind the first convolution, doubled by each next one up to 8 times; 64 unless given. */
  width?: number;
  /** Kernels over frames, height and width; else over height and width, every frame an image of its own. */
  use3d?: boolean;
  /** The dtype of activations; parameters and logits are f32 always. */
  computeDtype?: "f32" | "bf16";
}

const KERNEL = 4;

/**
 * A PatchGAN: each logit judges one patch. Convolutions with kernels of 4, `layers` times with stride 2, once more with
 * 1, then to logits; batch norm and LeakyReLU 0.2 between them. Weights start as N(0, 0.02²), those of batch norm as
 * N(1, 0.02²). Keys are the reference's: `main.N` counts convolutions, norms and activations.
 */
export class Discriminator extends Module {
  /** null where an activation stands. */
  main: (Conv3d | BatchNorm | null)[];
  private _options: DiscriminatorOptions;

  constructor(options: DiscriminatorOptions, init: Initializer) {
    super();
    const { inputChannels, outputChannels = 1, layers = 3, width = 64, use3d = false } = options;
    const convolution = (inputs: number, outputs: number, stride: number, bias: boolean): Conv3d => {
      const conv = use3d
        ? new Conv3d(inputs, outputs, [KERNEL, KERNEL, KERNEL], init, {
            stride: [stride, stride, stride],
            padTime: [1, 1],
            padSpace: [1, 1],
            bias,
          })
        : new Conv2d(inputs, outputs, KERNEL, init, { stride, padding: 1, bias });
      init.redraw(conv.weight, 0.02);
      return conv;
    };
    const widthAt = (n: number) => width * Math.min(2 ** n, 8);
    this.main = [convolution(inputChannels, width, 2, true), null];
    for (let n = 1; n <= layers; n++) {
      const norm = new BatchNorm(widthAt(n), init);
      init.redraw(norm.weight, 0.02, 1);
      this.main.push(convolution(widthAt(n - 1), widthAt(n), n < layers ? 2 : 1, false), norm, null);
    }
    this.main.push(convolution(widthAt(layers), outputChannels, 1, true));
    this._options = options;
  }

  /**
   * A video (B,F,H,W,C) f32 to logits (B,F',H',W',maps) f32; F' is F unless frames are convolved too.
   * @throws {LtxError} `shape_mismatch` when channels don't fit or an axis that is convolved is below 3 · 2^layers.
   */
  forward(video: Tensor): Tensor {
    const { inputChannels, layers = 3, use3d = false, computeDtype = "f32" } = this._options;
    const [, frames, height, width, channels] = video.shape;
    const smallest = 3 * 2 ** layers;
    const fits = Math.min(height, width, use3d ? frames : smallest) >= smallest;
    check(video.dims === 5 && channels === inputChannels && fits, "shape_mismatch", () => {
      const axes = use3d ? "F, H and W" : "H and W";
      return `[discriminator] expects (B,F,H,W,${inputChannels}) with ${axes} of ${smallest} or more, got [${video.shape}]`;
    });
    return scope(() => {
      const logits = this.main.reduce<Tensor>(
        (x, part) => (part ? part.forward(x) : leakyRelu(x)),
        cast(video, computeDtype),
      );
      return cast(logits, "f32");
    });
  }
}
