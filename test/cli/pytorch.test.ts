/** The reference's checkpoints in the commands: models that were saved by PyTorch, with a YAML file beside them. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { readSafetensors } from "../../lib/formats/safetensors.js";
import { findModelFile } from "../../lib/pipelines/index.js";
import { PtTensor, writePt } from "../support/pytorch.js";
import { call, testFolder, tinyFile, tinyFlowYaml, tinyVaeYaml, writeYaml } from "../support/tiny.js";

const folder = testFolder();
const run = join(folder, "run");
const vaePt = join(folder, "vae.pt");
const flowPt = join(folder, "ltx.pt");
const vaeYaml = writeYaml(folder, "vae.yaml", tinyVaeYaml());
const flowYaml = writeYaml(folder, "flow.yaml", tinyFlowYaml());

/** Saves a trained stage as the reference does. */
async function save(stage: "vae" | "flow", path: string): Promise<void> {
  const file = await readSafetensors(await findModelFile(run, stage));
  const state = new Map<string, PtTensor>();
  for (const [name, { shape }] of file.tensors) state.set(name, PtTensor.f32([...(await file.readF32(name))], shape));
  await file.close();
  await writePt(
    path,
    new Map<string, unknown>([
      ["step", 12],
      ["model_state_dict", state],
    ]),
  );
}

beforeAll(async () => {
  expect((await call("train", "--config", tinyFile, "--out", run)).code).toBe(0);
  await save("vae", vaePt);
  await save("flow", flowPt);
});

const picture = (...path: string[]) => readFileSync(join(folder, ...path));

describe("a model that PyTorch saved", () => {
  it("draws the same samples", async () => {
    const args = ["--prompt", "three", "--seed", "3", "--steps", "3"];
    const pt = await call("sample", "--checkpoint", flowPt, "--config", flowYaml, "--out", join(folder, "pt"), ...args);
    expect(pt.code).toBe(0);
    expect((await call("sample", "--checkpoint", run, "--out", join(folder, "own"), ...args)).code).toBe(0);
    expect(picture("pt", "samples.png")).toEqual(picture("own", "samples.png"));
  });

  it("makes the same reconstructions, alone and inside a diffusion model", async () => {
    const own = join(folder, "own-vae");
    expect((await call("reconstruct", "--checkpoint", join(run, "vae"), "--out", own)).code).toBe(0);
    for (const [name, path, config] of [
      ["a", vaePt, vaeYaml],
      ["b", vaePt, flowYaml],
      ["c", flowPt, flowYaml],
    ] as const) {
      const outcome = await call("reconstruct", "--checkpoint", path, "--config", config, "--out", join(folder, name));
      expect(outcome).toMatchObject({ code: 0, stderr: "" });
      expect(picture(name, "reconstructions.png")).toEqual(picture("own-vae", "reconstructions.png"));
    }
  });

  it("is the VAE of a transformer's run", async () => {
    const outcome = await call(
      "train",
      "--config",
      flowYaml,
      "--vae",
      vaePt,
      "--steps",
      "1",
      "--out",
      join(folder, "next"),
    );
    expect(outcome.code).toBe(0);
  });

  it.each([
    ["vae", vaeYaml, vaePt],
    ["flow", flowYaml, flowPt],
  ] as const)("is where a new run starts: %s", async (stage, config, pt) => {
    const out = join(folder, `from-${stage}`);
    const started = await call("train", "--config", config, "--init", pt, "--steps", "1", "--out", out);
    expect(started).toMatchObject({ code: 0, stderr: "" });
    const [before, after] = await Promise.all(
      [join(run, stage), out].map(async (path) => readSafetensors(await findModelFile(path, stage))),
    );
    let moved = 0;
    for (const name of after.tensors.keys()) {
      const [a, b] = await Promise.all([before.readF32(name), after.readF32(name)]);
      a.forEach((value, i) => {
        moved = Math.max(moved, Math.abs(value - b[i]) / Math.max(1, Math.abs(value)));
      });
    }
    await Promise.all([before.close(), after.close()]);
    // Adam's first update is at most the learning rate; a value that was not taken over is far off.
    expect(moved).toBeLessThan(3e-3);
  });

  it("starts nothing that it does not fit", async () => {
    const out = join(folder, "unfit");
    const other = await call("train", "--config", flowYaml, "--init", vaePt, "--out", out);
    expect(other).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("is a vae checkpoint, expected one of a flow run"),
    });
    const both = await call("train", "--config", tinyFile, "--init", vaePt, "--out", out);
    expect(both).toMatchObject({ code: 2, stderr: expect.stringContaining("--init starts one stage") });
    expect(existsSync(out)).toBe(false);
  });

  it("needs its configuration, of the right kind", async () => {
    const none = await call("sample", "--checkpoint", flowPt, "--out", join(folder, "none"));
    expect(none.stderr).toContain("does not say what model it holds: give its configuration (--config FILE)");
    expect(none.code).toBe(1);
    const wrong = await call("sample", "--checkpoint", flowPt, "--config", vaeYaml, "--out", join(folder, "none"));
    expect(wrong).toMatchObject({ code: 2, stderr: expect.stringContaining("the configuration is a VAE's") });
    const vae = await call("sample", "--checkpoint", vaePt, "--config", flowYaml, "--out", join(folder, "none"));
    expect(vae).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("is a vae checkpoint, expected one of a flow run"),
    });
  });
});
