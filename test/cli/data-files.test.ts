/** Runs on clips from files. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { MovingMnist } from "../../lib/data/index.js";
import { npyBytes } from "../support/npy.js";
import { writeZip } from "../support/pytorch.js";
import { call, eventsOf, testFolder, tinyConfig, tinyYaml, writeYaml } from "../support/tiny.js";

const folder = testFolder();
const { height, width } = tinyConfig().vae.data;
const [VIDEOS, FRAMES] = [24, 30];
/** The VAE's losses of the runs so far: both files hold the same videos. */
const seen: number[][] = [];

beforeAll(async () => {
  const drawn = new MovingMnist({ frames: FRAMES, height, width, digits: 2, digitSize: Math.min(height, width) / 2 });
  const videos = new Uint8Array(VIDEOS * FRAMES * height * width);
  const sequences = new Uint8Array(videos.length);
  const labels = new BigInt64Array(VIDEOS * FRAMES * 2);
  const area = height * width;
  for (let n = 0; n < VIDEOS; n++) {
    const clip = drawn.clip(n);
    videos.set(clip.video, n * clip.video.length);
    for (let f = 0; f < FRAMES; f++) {
      sequences.set(clip.video.subarray(f * area, (f + 1) * area), (f * VIDEOS + n) * area);
      clip.labels.forEach((label, k) => {
        labels[(n * FRAMES + f) * 2 + k] = BigInt(label);
      });
    }
  }
  const one = (bytes: Buffer) => new Map([["arr_0.npy", bytes]]);
  const video = npyBytes("|u1", [VIDEOS, FRAMES, height, width], videos);
  await writeZip(join(folder, "videos_data.npz"), one(video), { compress: true, zip64: true });
  await writeZip(join(folder, "labels_data.npz"), one(npyBytes("<i8", [VIDEOS, FRAMES, 2], labels)), { zip64: true });
  writeFileSync(join(folder, "mnist_test_seq.npy"), npyBytes("|u1", [FRAMES, VIDEOS, height, width], sequences));
});

describe("training", () => {
  it.each(["npz", "npy"])("on %s files gives the same losses wherever the bytes come from", async (source) => {
    const yaml = tinyYaml((file) => {
      Object.assign(file.data, { source, path: folder, frame_processing: "sample" });
    });
    const config = writeYaml(folder, `${source}.yaml`, yaml);
    const out = join(folder, source);
    const outcome = await call("train", "--config", config, "--steps", "2", "--out", out, "--json");
    expect(outcome).toMatchObject({ code: 0, stderr: "" });
    const losses = eventsOf(outcome.stdout).flatMap((e) => (e.type === "step" && e.stage === "vae" ? [e.loss] : []));
    expect(losses).toHaveLength(2);
    seen.push(losses);
    expect(losses).toEqual(seen[0]);
    const evaluated = await call("reconstruct", "--checkpoint", out, "--num-samples", "2", "--out", join(out, "r"));
    expect(evaluated).toMatchObject({ code: 0, stderr: "" });
  });

  it("says what is missing", async () => {
    const config = writeYaml(
      folder,
      "none.yaml",
      tinyYaml((file) => Object.assign(file.data, { source: "npz" })),
    );
    const outcome = await call("train", "--config", config, "--out", join(folder, "none"));
    expect(outcome).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('source "npz" needs the place of its files'),
    });
    const nowhere = join(folder, "nowhere");
    const missing = writeYaml(
      folder,
      "missing.yaml",
      tinyYaml((file) => Object.assign(file.data, { source: "npz", path: nowhere })),
    );
    const failed = await call("train", "--config", missing, "--out", join(folder, "missing"));
    expect(failed).toMatchObject({ code: 1, stderr: expect.stringContaining(join(nowhere, "videos_data.npz")) });
  });
});
