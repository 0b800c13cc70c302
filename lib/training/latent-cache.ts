/**
 * The VAE's moments of every training clip, encoded once: training then samples a fresh latent from them at each step,
 * as if the clip had been encoded anew. Kept on the device, and in the run directory so that a resumed run reads the
 * same bytes.
 */
import { createHash } from "node:crypto";
import { access } from "node:fs/promises";
import { type DataSource, loadClips } from "../data/index.js";
import { LtxError } from "../errors.js";
import { readTensors } from "../formats/checkpoint.js";
import { writeSafetensors } from "../formats/safetensors.js";
import type { VideoVae } from "../models/video-vae/index.js";
import { affine, gatherRows } from "../ops/index.js";
import { alias, empty, keep, launch, noGrad, type Shape, scope, Tensor } from "../tensor/index.js";

/** Clips that are encoded at once. */
const ENCODE_BATCH = 16;

export class LatentCache {
  /** @param moments (clips, f, h, w, 2C) f32 */
  constructor(readonly moments: Tensor) {}

  get length(): number {
    return this.moments.shape[0];
  }

  /** The moments of some clips, (B, f, h, w, 2C). */
  batch(indices: readonly number[]): Tensor {
    const index = Tensor.from(Int32Array.from(indices), [indices.length], { device: this.moments.device });
    return gatherRows(this.moments, index);
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

/** A cache from disk, or null when there is none of that fingerprint. */
export async function loadLatentCache(path: string, fingerprint: string, vae: VideoVae): Promise<LatentCache | null> {
  try {
    await access(path);
  } catch {
    return null;
  }
  const file = await readTensors(path).catch((error) => {
    // A cache can be made again: a damaged one counts as none.
    if (error instanceof LtxError) return null;
    throw error;
  });
  if (!file) return null;
  const { metadata, tensors } = file;
  const moments = tensors.get("moments");
  if (metadata.fingerprint !== fingerprint || !moments) return null;
  return new LatentCache(keep(Tensor.from(moments.data, moments.shape, { device: vae.device, group: "data" })));
}

/** Encodes all clips; yields how many are done. Nothing is kept when the caller stops early. */
export async function* encodeClips(
  vae: VideoVae,
  data: DataSource,
  signal?: AbortSignal,
): AsyncGenerator<number, LatentCache> {
  let moments: Tensor | null = null;
  try {
    for (let from = 0; from < data.length; from += ENCODE_BATCH) {
      if (signal?.aborted) throw new LtxError("aborted", "[latents] stopped before all clips were encoded");
      const count = Math.min(ENCODE_BATCH, data.length - from);
      const clips = await loadClips(
        data,
        Array.from({ length: count }, (_, i) => from + i),
      );
      scope(() =>
        noGrad(() => {
          const shape: Shape = [count, data.frames, data.height, data.width, data.channels];
          const part = vae.encodeMoments(affine(Tensor.from(clips, shape, { device: vae.device }), 1 / 255));
          moments ??= keep(empty([data.length, ...part.shape.slice(1)], { device: vae.device, group: "data" }));
          launch("cast", [part, alias(moments, part.shape, from * (part.size / count))], [1, 0]);
        }),
      );
      // One batch queued ahead keeps the device busy without filling the queue.
      if ((from / ENCODE_BATCH) % 2 === 1) await vae.device.synchronize();
      yield from + count;
    }
    await vae.device.synchronize();
    if (!moments) throw new LtxError("invalid_argument", "[latents] the data set is empty");
    const cache = new LatentCache(moments);
    moments = null;
    return cache;
  } finally {
    (moments as Tensor | null)?.dispose();
  }
}

export async function saveLatentCache(path: string, cache: LatentCache, fingerprint: string): Promise<void> {
  const data = async () => cache.moments.readBytes();
  await writeSafetensors(path, [{ name: "moments", dtype: "F32", shape: cache.moments.shape, data }], { fingerprint });
}
