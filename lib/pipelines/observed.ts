import { vaeFactors } from "../config/geometry.js";
import { check } from "../errors.js";
import { type FlowModel, toFlow } from "../models/flow-model.js";
import { affine } from "../ops/index.js";
import { type Device, scope, Tensor } from "../tensor/index.js";
import type { Video } from "./video.js";

/** How many pixel frames one more frame of the model's state stands for, after the first one: 1 without a VAE. */
export function framesPerState({ config }: Pick<FlowModel, "config">): number {
  return config.latent_encoder ? vaeFactors(config.latent_encoder).time : 1;
}

/** The numbers of frames that a clip of the model can be made to begin with: 1, 1 + r, 1 + 2r, … below its own. */
export function legalOverlaps(model: Pick<FlowModel, "config">): number[] {
  const step = framesPerState(model);
  const count = Math.ceil((model.config.sampling.frames - 1) / step);
  return Array.from({ length: count }, (_, k) => 1 + k * step);
}

/**
 * Frames that a clip is to begin with, as the flow sees them: (B, k, h, w, C) f32, the posterior's mean in the
 * transformer's scale. The encoder is causal, so they are the first k frames of the whole clip's latents, whatever
 * follows.
 * @throws LtxError `invalid_argument` when their size or number is not the model's
 */
export function encodeObserved(model: FlowModel, observed: Video, batch: number, device: Device): Tensor {
  const { height, width, channels } = model.config.sampling;
  const { clips, frames } = observed;
  check(clips.length === batch, "invalid_argument", () => {
    return `[observed] a clip for each of the ${batch} prompts is needed, got ${clips.length}`;
  });
  check(
    observed.height === height && observed.width === width && observed.channels === channels,
    "invalid_argument",
    () =>
      `[observed] the model's frames are ${height}x${width} with ${channels} channels (height x width), ` +
      `got ${observed.height}x${observed.width} with ${observed.channels}`,
  );
  const legal = legalOverlaps(model);
  check(legal.includes(frames), "invalid_argument", () => {
    return `[observed] clips of ${model.config.sampling.frames} frames can begin with ${legal.join(", ")} given frames, got ${frames}`;
  });
  return scope(() => {
    const bytes = new Uint8Array(Buffer.concat(clips));
    const pixels = affine(Tensor.from(bytes, [batch, frames, height, width, channels], { device }), 1 / 255);
    return toFlow(model, pixels);
  });
}
