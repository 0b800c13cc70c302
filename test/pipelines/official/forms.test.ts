/** The pipelines on checkpoints of every generation and in every form. */
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { convert, type LtxVideoOptions, LtxVideoPipeline, type PipelineLoadOptions } from "../../../lib/index.js";
import { writeOfficial } from "../../support/official.js";
import { testFolder } from "../../support/tiny.js";
import { TINY_TIMES, tinyCheckpoint, tinyTextEncoder } from "../../support/tiny-official.js";

const folder = testFolder();
const at = (name: string) => join(folder, name);
let textEncoder: string;
beforeAll(async () => {
  textEncoder = await tinyTextEncoder(folder);
});

const options: LtxVideoOptions = {
  prompt: "three and 7",
  height: 32,
  width: 64,
  numFrames: 9,
  timesteps: TINY_TIMES,
  guidanceScale: 2,
  stgScale: 1,
  skipBlockList: [1],
};

async function clip(load: PipelineLoadOptions, more: Partial<LtxVideoOptions> = {}): Promise<Uint8Array> {
  const pipeline = await LtxVideoPipeline.load({ textEncoder, precision: "float32", ...load });
  try {
    return (await pipeline.generate({ ...options, ...more })).clips[0];
  } finally {
    pipeline.dispose();
  }
}

describe("a checkpoint's forms", () => {
  it("draw the same video: one file, shards, a diffusers folder, this package's own", async () => {
    const expected = await clip({ checkpoint: tinyCheckpoint });
    const forms = [
      await convert(tinyCheckpoint, at("diffusers"), { to: "diffusers" }),
      await convert(tinyCheckpoint, at("native.safetensors"), { to: "ltx-native" }),
      await convert(tinyCheckpoint, at("shards"), { to: "official", maxShardSize: 200_000 }),
    ];
    expect(readdirSync(at("shards")).length).toBeGreaterThan(3);
    for (const { path } of forms) expect(await clip({ checkpoint: path })).toEqual(expected);
    // Turns are taken from shards too.
    expect(await clip({ checkpoint: at("shards"), offload: true })).toEqual(expected);
  });

  it.each([["0.9.0"], ["0.9.1"], ["0.9.5"]] as const)(
    "of %s give a video, with noise where the decoder takes any",
    async (generation) => {
      const checkpoint = await writeOfficial(folder, generation, "f32");
      const load = { checkpoint, sampler: "uniform" as const };
      const times = { timesteps: [1, 0.725] };
      const one = await clip(load, times);
      expect(one).toHaveLength(9 * 32 * 64 * 3);
      expect(await clip(load, times)).toEqual(one);
    },
  );

  it("with 8-bit weights are widened as they are loaded", async () => {
    const checkpoint = await writeOfficial(folder, "0.9.5", "fp8");
    expect(await clip({ checkpoint, precision: "bfloat16" }, { timesteps: [1, 0.725] })).toHaveLength(9 * 32 * 64 * 3);
  });

  it("are refused when a shard is missing or a download was cut", async () => {
    await convert(tinyCheckpoint, at("incomplete"), { to: "official", maxShardSize: 200_000 });
    const [shard] = readdirSync(at("incomplete")).filter((name) => name.endsWith(".safetensors"));
    rmSync(join(at("incomplete"), shard));
    await expect(clip({ checkpoint: at("incomplete") })).rejects.toMatchObject({
      code: "checkpoint",
      message: expect.stringContaining(shard),
    });
    const bytes = readFileSync(tinyCheckpoint);
    writeFileSync(at("cut.safetensors"), bytes.subarray(0, bytes.length / 2));
    await expect(clip({ checkpoint: at("cut.safetensors") })).rejects.toMatchObject({ code: "file_format" });
  });
});

it("spreads the steps as the checkpoint says, or as it is told", async () => {
  const checkpoint = await writeOfficial(folder, "0.9.0", "f32");
  const seen: Record<string, number[]> = {};
  for (const sampler of ["from_checkpoint", "uniform", "linear-quadratic"] as const) {
    const pipeline = await LtxVideoPipeline.load({ checkpoint, textEncoder, precision: "float32", sampler });
    // The file names the times that it was distilled for, which these are not.
    const facts = { ...pipeline.facts, allowedInferenceSteps: null };
    const open = new LtxVideoPipeline(pipeline.models, facts, pipeline.device);
    seen[sampler] = [...open.request({ ...options, timesteps: null, numInferenceSteps: 4 }).timesteps];
    pipeline.dispose();
  }
  expect(seen.uniform).toEqual([1, 0.75, 0.5, 0.25]);
  expect(seen["linear-quadratic"][2]).toBeCloseTo(0.975, 6);
  expect(seen.from_checkpoint[3]).toBeCloseTo(0.1, 6);
});
