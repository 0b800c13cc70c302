import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { readTensors } from "../../lib/formats/checkpoint.js";
import { call, newestCheckpoint, testFolder, tinyYaml, writeYaml } from "../support/tiny.js";

const folder = testFolder();

it("gradient_checkpointing trains both stages to the same bits", async () => {
  const runs = [];
  for (const gradient_checkpointing of [false, true]) {
    const name = `checkpointing-${gradient_checkpointing}`;
    const yaml = tinyYaml((file) => {
      for (const stage of [file.vae, file.flow]) Object.assign(stage.training, { gradient_checkpointing, steps: 6 });
    });
    const run = join(folder, name);
    const done = await call("train", "--config", writeYaml(folder, `${name}.yaml`, yaml), "--out", run);
    expect(done).toMatchObject({ code: 0, stderr: "" });
    const { config } = JSON.parse(readFileSync(join(run, "run.json"), "utf8"));
    expect(config.vae.training.gradient_checkpointing).toBe(gradient_checkpointing);
    const stages = ["vae", "flow"].map(async (stage) => {
      const { step } = newestCheckpoint(join(run, stage));
      const { tensors } = await readTensors(join(run, stage, "checkpoints", step, "model.safetensors"));
      return new Map([...tensors].map(([key, { data }]) => [key, Buffer.from(data.buffer).toString("base64")]));
    });
    runs.push(await Promise.all(stages));
  }
  expect(runs[1]).toEqual(runs[0]);
});
