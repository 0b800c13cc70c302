/**
 * The VAE's moments of the clips that training visits, encoded once: training then samples a fresh latent from them at each step,
 * as if the clip had been encoded anew. Kept on the device, and in the run directory so that a resumed run reads the
 * same bytes.
 */
import { createHash } from "node:crypto";
import { vaeFactors } from "../config/geometry.js";
import { type DataSource, loadClips } from "../data/index.js";
import { check, LtxError } from "../errors.js";
import { readTensors } from "../formats/checkpoint.js";
import { exists } from "../formats/paths.js";
import { writeSafetensors } from "../formats/safetensors.js";
import type { VideoVae } from "../models/video-vae/index.js";
import { affine, gatherRows } from "../ops/index.js";
import { alias, empty, keep, launch, noGrad, type Shape, scope, Tensor } from "../tensor/index.js";

/** Clips that are encoded at once. */
const ENCODE_BATCH = 16;

export class LatentCache {
  private readonly rows: Map<number, number>;

  /**
   * @param moments (clips, f, h, w, 2C) f32
   * @param clips whose moments those are, by their indices in the data
   */
  constructor(
    readonly moments: Tensor,
    readonly clips: readonly number[],
  ) {
    this.rows = new Map(clips.map((clip, row) => [clip, row]));
  }

  /** The moments of some clips, (B, f, h, w, 2C). */
  batch(indices: readonly number[]): Tensor {
    const rows = indices.map((clip) => this.rows.get(clip) ?? -1);
    check(!rows.includes(-1), "invalid_argument", () => {
      return `[latents] clip ${indices[rows.indexOf(-1)]} was not encoded`;
    });
    const index = Tensor.from(Int32Array.from(rows), [rows.length], { device: this.moments.device });
    return gatherRows(this.moments, index);
  }

  /** Whether all of these clips are in it. */
  covers(clips: readonly number[]): boolean {
    return clips.every((clip) => this.rows.has(clip));
  }

  dispose(): void {
    this.moments.dispose();
  }
}

/** What the cached numbers depend on. */
export async function cacheFingerprint(vae: VideoVae, description: unknown): Promise<string> {
  const hash = createHash("sha256").update(JSON.stringify(description));
  for (const [name, { data }] of await vae.stateDict()) {
    hash.update(name).update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  return hash.digest("hex");
}

/**
 * A cache from disk, or null when there is none of that fingerprint. It can be made again, so one that is damaged, or of
 * another shape than this VAE makes of this data, counts as none.
 */
export async function loadLatentCache(
  path: string,
  fingerprint: string,
  vae: VideoVae,
  data: DataSource,
  clips: readonly number[],
): Promise<LatentCache | null> {
  if (!(await exists(path))) return null;
  const file = await readTensors(path).catch((error) => {
    if (error instanceof LtxError) return null;
    throw error;
  });
  if (!file) return null;
  const { metadata, tensors } = file;
  const moments = tensors.get("moments");
  if (!moments || metadata.fingerprint !== fingerprint || metadata.sha256 !== contentHash(moments.data)) return null;
  const { latent_channels: channels } = vae.config;
  const grid = vaeFactors(vae.config).latentShape(data.frames, data.height, data.width);
  const shape = [clips.length, ...grid, vae.stochastic ? 2 * channels : channels];
  if (moments.shape.join() !== shape.join()) return null;
  return new LatentCache(keep(Tensor.from(moments.data, moments.shape, { device: vae.device, group: "data" })), clips);
}

function contentHash(values: Float32Array): string {
  return createHash("sha256")
    .update(new Uint8Array(values.buffer, values.byteOffset, values.byteLength))
    .digest("hex");
}

/** Encodes some clips; yields how many are done. Nothing is kept, and null returned, when the caller stops early. */
export async function* encodeClips(
  vae: VideoVae,
  data: DataSource,
  clips: readonly number[],
  signal?: AbortSignal,
): AsyncGenerator<number, LatentCache | null> {
  let moments: Tensor | null = null;
  try {
    for (let from = 0; from < clips.length; from += ENCODE_BATCH) {
      if (signal?.aborted) return null;
      const part = clips.slice(from, from + ENCODE_BATCH);
      const count = part.length;
      const bytes = await loadClips(data, part);
      scope(() =>
        noGrad(() => {
          const shape: Shape = [count, data.frames, data.height, data.width, data.channels];
          const encoded = vae.encodeMoments(affine(Tensor.from(bytes, shape, { device: vae.device }), 1 / 255));
          moments ??= keep(empty([clips.length, ...encoded.shape.slice(1)], { device: vae.device, group: "data" }));
          launch("cast", [encoded, alias(moments, encoded.shape, from * (encoded.size / count))], [1, 0]);
        }),
      );
      // One batch queued ahead keeps the device busy without filling the queue.
      if ((from / ENCODE_BATCH) % 2 === 1) await (moments as Tensor | null)?.ready();
      yield from + count;
    }
    if (!moments) throw new LtxError("invalid_argument", "[latents] the data set is empty");
    await (moments as Tensor).ready();
    const cache = new LatentCache(moments, clips);
    moments = null;
    return cache;
  } finally {
    (moments as Tensor | null)?.dispose();
  }
}

/** @throws LtxError `io` */
export async function saveLatentCache(path: string, cache: LatentCache, fingerprint: string): Promise<void> {
  const bytes = await cache.moments.readBytes();
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  const moments = { name: "moments", dtype: "F32" as const, shape: cache.moments.shape, data: bytes };
  await writeSafetensors(path, [moments], { fingerprint, sha256 });
}
