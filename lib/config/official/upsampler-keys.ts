/** A latent upsampler's configuration told from its tensors alone, for files without metadata. */
import { LtxError } from "../../errors.js";
import type { UpsamplerConfig } from "./upsampler.js";

/**
 * @param tensors shapes by the official keys
 * @param source stands in the messages
 * @throws LtxError `checkpoint` when the tensors are not those of an upsampler
 */
export function upsamplerConfigFromKeys(
  tensors: ReadonlyMap<string, { readonly shape: readonly number[] }>,
  source: string,
): UpsamplerConfig {
  const shape = (key: string): readonly number[] => {
    const found = tensors.get(key)?.shape;
    if (found) return found;
    throw new LtxError(
      "checkpoint",
      `[official] ${source} has no latent upsampler that can be told: ${key} is missing`,
    );
  };
  const [mid, channels, ...kernel] = shape("initial_conv.weight");
  const [unfolded, , ...taps] = shape("upsampler.0.weight");
  const blocks = new Set([...tensors.keys()].flatMap((key) => /^res_blocks\.(\d+)\./.exec(key)?.[1] ?? []));
  return {
    in_channels: channels,
    mid_channels: mid,
    num_blocks_per_stage: blocks.size,
    dims: kernel.length === 2 ? 2 : 3,
    // Frames alone need a kernel of their extent and unfold into 2, all axes together into 8.
    spatial_upsample: taps.length === 2 || unfolded === 8 * mid,
    temporal_upsample: taps.length === 3,
  };
}
