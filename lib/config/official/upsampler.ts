/** The configuration of an official latent upsampler. */
import { z } from "zod";
import { count, layers } from "../fields.js";
import { parseOfficial } from "./parse.js";

const GROUPS = 32;

/** Loose: files carry keys of their own (`_class_name`, versions) that say nothing about the model. */
const officialUpsampler = z
  .looseObject({
    in_channels: count.default(4),
    mid_channels: count.default(128),
    num_blocks_per_stage: layers.default(4),
    dims: z.literal([2, 3]).default(2),
    spatial_upsample: z.boolean().default(true),
    temporal_upsample: z.boolean().default(false),
  })
  .refine(({ mid_channels }) => mid_channels % GROUPS === 0, {
    path: ["mid_channels"],
    message: `needs a multiple of ${GROUPS}, the number of groups in its norms`,
  })
  .refine(({ spatial_upsample, temporal_upsample }) => spatial_upsample || temporal_upsample, {
    path: ["spatial_upsample"],
    message: "found false, and temporal_upsample too: one of them must be true",
  })
  .refine(({ dims, temporal_upsample }) => dims === 3 || !temporal_upsample, {
    path: ["temporal_upsample"],
    message: "found true, which needs dims 3",
  });

export interface UpsamplerConfig {
  /** Of the latents. */
  in_channels: number;
  mid_channels: number;
  /** Residual blocks before and behind the upsampling. */
  num_blocks_per_stage: number;
  /** 2: frames are by themselves. */
  dims: 2 | 3;
  spatial_upsample: boolean;
  temporal_upsample: boolean;
}

/**
 * The configuration in an upsampler's metadata or its diffusers folder. What it leaves out has the value that the
 * official code takes then.
 * @param source stands in the messages
 * @throws LtxError `config`, listing every problem
 */
export function parseOfficialUpsampler(value: unknown, source: string): UpsamplerConfig {
  const { in_channels, mid_channels, num_blocks_per_stage, dims, spatial_upsample, temporal_upsample } = parseOfficial(
    officialUpsampler,
    value,
    `${source} (upsampler)`,
  );
  return { in_channels, mid_channels, num_blocks_per_stage, dims, spatial_upsample, temporal_upsample };
}
