/** What becomes of a request, stage by stage: features of the prompts, a start, latents, pixels. */
import { toneMapLatents } from "../../diffusion/adain.js";
import { joinSamples } from "../../diffusion/guidance.js";
import { type ConditionedState, Conditioning, usesNegative, videoLatents } from "../../diffusion/official/index.js";
import { type PixelClip, resizeBilinear } from "../../formats/media/clip.js";
import { Turns } from "../../formats/turns.js";
import { cutNotices, type TextEmbedding, type TextEncoder } from "../../models/text-encoder/index.js";
import { type LtxVideoTransformer, latentCoordinates, type Positions } from "../../models/transformer/index.js";
import type { CausalVideoAutoencoder } from "../../models/video-vae/index.js";
import { affine, axpby, detach, mixRows, reshape, sliceFirst } from "../../ops/index.js";
import { type Device, noGrad, scope, Tensor } from "../../tensor/index.js";
import { type DenoisingStep, denoise, type PromptFeatures } from "./denoise.js";
import type { ModelFacts } from "./models.js";
import type { NoiseSource } from "./noise.js";
import type { Request } from "./request.js";

const quietly = <T>(body: () => T): T => noGrad(() => scope(body));

/** Frees what there is. */
function disposeAll(...tensors: (Tensor | null | undefined)[]): void {
  for (const tensor of tensors) tensor?.dispose();
}

export function disposeFeatures({ positive, negative }: PromptFeatures): void {
  for (const part of [positive, negative]) disposeAll(part?.embeddings, part?.mask);
}

/** Features of the texts of a request; those of negative prompts where a step needs them. */
export async function encodeTexts(
  request: Request,
  encoder: TextEncoder,
  { signal, onNotice }: { signal?: AbortSignal; onNotice?: (message: string) => void } = {},
): Promise<PromptFeatures> {
  const { prompts, negativePrompts, guidance } = request;
  const positive = prompts ?? [];
  const negative = guidance.some(usesNegative) ? negativePrompts : [];
  // As one batch, so that both are padded alike.
  const encode = await encoder.prepare([...negative, ...positive], signal);
  if (onNotice) for (const notice of cutNotices(encoder, [...positive, ...negative])) onNotice(notice);
  return quietly(() => {
    const all = encode();
    const part = (start: number, count: number): TextEmbedding => ({
      embeddings: sliceFirst(all.embeddings, start, count),
      mask: sliceFirst(all.mask, start, count),
    });
    return {
      positive: part(negative.length, positive.length),
      negative: negative.length > 0 ? part(0, negative.length) : null,
    };
  });
}

/** The features that a request brings, as often as videos are wanted of each. */
export function givenFeatures({ embeds, repeats }: Request): PromptFeatures | null {
  if (!embeds) return null;
  const spread = (x: Tensor): Tensor => {
    if (repeats === 1) return detach(x);
    const rows = Array.from({ length: x.shape[0] }, (_, i) => sliceFirst(x, i, 1));
    return joinSamples(rows.flatMap((row) => Array<Tensor>(repeats).fill(row)));
  };
  const all = ({ embeddings, mask }: TextEmbedding) => ({ embeddings: spread(embeddings), mask: spread(mask) });
  return quietly(() => ({ positive: all(embeds.positive), negative: embeds.negative && all(embeds.negative) }));
}

/** Whether the start needs the VAE. */
export const needsEncoder = ({ mediaItems, conditioningItems }: Request): boolean =>
  mediaItems !== null || conditioningItems.length > 0;

/**
 * The state that sampling begins with. Draws, in this order: the posterior of `mediaItems`, the start, then for each
 * conditioning item its posterior and, where it becomes tokens of its own, their noise.
 * @param vae may be null where {@link needsEncoder} says so
 */
export async function startState(
  request: Request,
  facts: ModelFacts,
  vae: CausalVideoAutoencoder | null,
  noise: NoiseSource,
  device: Device,
  signal?: AbortSignal,
): Promise<ConditionedState> {
  const { batch, grid, timesteps } = request;
  const mediaItems = request.mediaItems && (await fitted(request.mediaItems, request, signal));
  const conditioningItems: { item: Request["conditioningItems"][number]; clips: readonly PixelClip[] }[] = [];
  for (const item of request.conditioningItems) {
    conditioningItems.push({ item, clips: await fitted(item.mediaItem, request, signal) });
  }
  const encode = (clips: readonly PixelClip[]): Tensor => {
    const video = toVideo(clips, device);
    const [samples, frames] = video.shape;
    const shape = [samples, (frames - 1) / facts.temporalFactor + 1, grid[1], grid[2], facts.latentChannels];
    return (vae as CausalVideoAutoencoder).encode(video, noise.draw("posterior", shape));
  };
  return quietly(() => {
    const given = mediaItems ? encode(mediaItems) : request.latents;
    const drawn = noise.draw("init", [batch, grid[0] * grid[1] * grid[2], facts.latentChannels]);
    const shape = [batch, ...grid, facts.latentChannels];
    const [time] = timesteps;
    // A copy in any case: conditioning changes it.
    const start = given
      ? axpby(time, reshape(drawn, shape), 1 - time, everySample(given, batch))
      : affine(reshape(drawn, shape), 1);
    const conditioning = new Conditioning(start, facts.temporalFactor);
    for (const { item, clips } of conditioningItems) {
      const { mediaFrameNumber: frameNumber, conditioningStrength: strength } = item;
      conditioning.add({ latents: encode(clips), frameNumber, strength }, (size) => noise.draw("cond_item", size));
    }
    return conditioning.finish();
  });
}

const everySample = (x: Tensor, batch: number): Tensor =>
  x.shape[0] === batch ? x : joinSamples(Array<Tensor>(batch).fill(x));

/** Clips of the request's size. */
async function fitted(
  clips: PixelClip | readonly PixelClip[],
  { height, width }: Request,
  signal?: AbortSignal,
): Promise<readonly PixelClip[]> {
  const turns = new Turns("[generate] scaling the given frames", signal);
  const list: readonly PixelClip[] = Array.isArray(clips) ? clips : [clips as PixelClip];
  const result: PixelClip[] = [];
  for (const clip of list) result.push(await resizeBilinear(clip, height, width, turns));
  return result;
}

/** Clips of one size as one video (n, F, H, W, 3). */
function toVideo(clips: readonly PixelClip[], device: Device): Tensor {
  const videos = clips.map(({ data, frames, height, width, channels }) => {
    return Tensor.from(data, [1, frames, height, width, channels], { device });
  });
  return videos.length === 1 ? videos[0] : joinSamples(videos);
}

export interface DrawOptions {
  request: Request;
  facts: ModelFacts;
  text: PromptFeatures;
  noise: NoiseSource;
  signal?: AbortSignal;
  onStep?: (step: Omit<DenoisingStep, "pass">) => void | Promise<void>;
}

/** Normalised latents (B, f, h, w, C) from a start, which stays the caller's. */
export async function drawLatents(
  state: ConditionedState,
  transformer: LtxVideoTransformer,
  { request, facts, text, noise, signal, onStep }: DrawOptions,
): Promise<Tensor> {
  const rope = await transformer.prepareRope(positionsOf(state, request, facts), signal);
  try {
    const tokens = await denoise(state, { ...request, transformer, rope, text, noise, signal, onStep });
    try {
      return quietly(() => videoLatents(tokens, state.groups));
    } finally {
      tokens.dispose();
    }
  } finally {
    disposeAll(rope.cos, rope.sin);
  }
}

/** Where the tokens of a state are: in seconds and pixels. */
function positionsOf({ groups }: ConditionedState, { frameRate }: Request, facts: ModelFacts): Positions {
  const { temporalFactor, spatialFactor, causalTemporalPositioning: causal } = facts;
  const parts = groups.map(({ grid, frameNumber: firstFrame }) =>
    latentCoordinates(grid, { temporalFactor, spatialFactor, causal, frameRate, firstFrame }),
  );
  const axis = (i: 0 | 1 | 2) => parts.flatMap((part) => Array.from(part[i]));
  return [axis(0), axis(1), axis(2)];
}

/** What the decoder is given: latents with its share of noise, if it expects any, and the tone map. */
export function decoderInput(latents: Tensor, request: Request, facts: ModelFacts, noise: NoiseSource): Tensor {
  const { decodeNoiseScale: scales, toneMapCompressionRatio: ratio } = request;
  const { device, shape } = latents;
  return quietly(() => {
    let z = affine(latents, 1);
    if (facts.timestepConditioning) {
      const factors = (values: readonly number[]) => Tensor.from(values, [values.length], { device });
      z = mixRows(z, noise.draw("decode", shape), factors(scales.map((s) => 1 - s)), factors(scales));
    }
    return ratio > 0 ? toneMapLatents(z, ratio) : z;
  });
}

/** Pixels (B, F, H, W, 3) around [-1, 1] of {@link decoderInput}. */
export async function decode(
  input: Tensor,
  vae: CausalVideoAutoencoder,
  { request, facts, noise }: Pick<DrawOptions, "request" | "facts" | "noise">,
): Promise<Tensor> {
  const { device } = input;
  const times = facts.timestepConditioning ? request.decodeTimestep : null;
  const pixels = quietly(() => {
    const timestep = times && Tensor.from(times, [times.length], { device });
    return vae.decode(input, timestep, { noise: noise.planes() });
  });
  await pixels.ready().catch((error) => {
    pixels.dispose();
    throw error;
  });
  return pixels;
}
