import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { loadConfig } from "../../lib/config/index.js";
import { readSafetensors, type SafetensorsTensor, writeSafetensors } from "../../lib/formats/safetensors.js";
import { VideoVae } from "../../lib/models/video-vae/index.js";
import { convert, reconstructHeldOut } from "../../lib/pipelines/index.js";
import { readVaeTensors } from "../../lib/pipelines/open-checkpoint.js";
import { device } from "../../lib/tensor/index.js";
import { failure } from "../support/failure.js";
import { bytesOf, legacyBytes, PtTensor, writePt } from "../support/pytorch.js";
import { call, testFolder, tinyFlowYaml, tinyVae, tinyVaeYaml, writeYaml } from "../support/tiny.js";

const folder = testFolder();
const at = (name: string) => join(folder, name);

/** The tiny VAE's fresh values as PyTorch saves a model. */
async function vaeState(prefix = ""): Promise<Map<string, PtTensor>> {
  const vae = new VideoVae(tinyVae().vae, { device: device("cpu"), seed: 3 });
  try {
    const state = await vae.stateDict();
    const tensor = (data: Float32Array, shape: readonly number[]) =>
      new PtTensor("torch FloatStorage", bytesOf(data), data.length, shape);
    return new Map([...state].map(([name, { data, shape }]) => [prefix + name, tensor(data, shape)]));
  } finally {
    vae.dispose();
  }
}

const reference = async (prefix = "") =>
  new Map<string, unknown>([
    ["step", 2],
    ["model_state_dict", new Map([...(await vaeState(prefix)), [`${prefix}loss.logvar`, PtTensor.f32([0.5], [])]])],
    ["optimizer_state_dicts", [new Map([["state", new Map([[0, new Map([["exp_avg", PtTensor.f32([1])]])]])]])]],
  ]);

const contents = async (path: string) => {
  const file = await readSafetensors(path);
  const entries = [...file.tensors.keys()].sort();
  const tensors = new Map<string, { dtype: string; shape: readonly number[]; values: number[] }>();
  for (const name of entries) {
    const { dtype, shape } = file.tensors.get(name) as { dtype: string; shape: readonly number[] };
    tensors.set(name, { dtype, shape, values: [...(await file.readF32(name))] });
  }
  await file.close();
  return { metadata: file.metadata, tensors };
};

describe("convert", () => {
  it.each(["zip", "legacy"])("writes a %s checkpoint under the reference's keys", async (format) => {
    const source = at(`${format}.pt`);
    if (format === "zip") await writePt(source, await reference("module."));
    else writeFileSync(source, legacyBytes(await reference("module.")));
    const result = await convert(source, at(`${format}.safetensors`));
    const { metadata, tensors } = await contents(result.path);
    const expected = new Map([...(await vaeState()), ["loss.logvar", PtTensor.f32([0.5], [])]]);
    expect([...tensors.keys()]).toEqual([...expected.keys()].sort());
    for (const [name, { data, shape }] of expected) {
      const values = [...new Float32Array(data.buffer, data.byteOffset, data.byteLength / 4)];
      expect(tensors.get(name)).toEqual({ dtype: "F32", shape, values });
    }
    expect(metadata).toEqual({});
    const bytes = readFileSync(result.path).length;
    expect(result).toEqual({
      source,
      path: result.path,
      kind: "vae",
      tensors: expected.size,
      bytes,
      leftOut: [],
      notices: [],
    });
  });

  it("stores a configuration, with which the file is a checkpoint like any other", async () => {
    await writePt(at("told.pt"), await reference());
    const config = writeYaml(folder, "vae.yaml", tinyVaeYaml());
    await convert(at("told.pt"), at("told.safetensors"), { config });
    const { metadata } = await contents(at("told.safetensors"));
    expect(metadata).toMatchObject({ format: "ltx-native", kind: "vae" });
    expect(JSON.parse(metadata.config)).toEqual(await loadConfig(config));
    const [native, pt] = [
      await reconstructHeldOut(at("told.safetensors"), { clips: 2 }),
      await reconstructHeldOut(at("told.pt"), { clips: 2, config }),
    ];
    expect(native.reconstructions.clips).toEqual(pt.reconstructions.clips);
    expect(native.originals.clips).toEqual(pt.originals.clips);
    expect(await failure(() => reconstructHeldOut(at("told.pt"), { clips: 2 }))).toMatchObject({
      code: "checkpoint",
      message: `[checkpoint] ${at("told.pt")} does not say what model it holds: give its configuration (--config FILE)`,
    });
  });

  it("keeps types, or changes those of floats", async () => {
    const entry = (name: string, dtype: SafetensorsTensor["dtype"], data: ArrayBufferView): SafetensorsTensor => ({
      name,
      dtype,
      shape: [2],
      data: bytesOf(data),
    });
    const tensors = [
      entry("encoder.a", "F32", Float32Array.of(1 + 2 ** -8, -0.1)),
      entry("encoder.b", "F64", Float64Array.of(0.1, 3)),
      entry("encoder.c", "BF16", Uint16Array.of(0x3f80, 0xc000)),
      entry("encoder.n", "I64", BigInt64Array.of(7n, -1n)),
      entry("encoder.t", "BOOL", Uint8Array.of(1, 0)),
    ];
    await writeSafetensors(at("types.safetensors"), tensors, { kind: "vae", note: "kept" });
    const types = async (name: string) =>
      [...(await contents(at(name))).tensors].map(([, { dtype, values }]) => [dtype, ...values]);
    await convert(at("types.safetensors"), at("same.safetensors"));
    expect(readFileSync(at("same.safetensors"))).toEqual(readFileSync(at("types.safetensors")));
    const integers = [
      ["I64", 7, -1],
      ["BOOL", 1, 0],
    ];
    await convert(at("types.safetensors"), at("f32.safetensors"), { dtype: "f32" });
    const [tenth, small] = [Math.fround(0.1), Math.fround(-0.1)];
    expect(await types("f32.safetensors")).toEqual([
      ["F32", 1 + 2 ** -8, small],
      ["F32", tenth, 3],
      ["F32", 1, -2],
      ...integers,
    ]);
    await convert(at("types.safetensors"), at("bf16.safetensors"), { dtype: "bf16" });
    expect(await types("bf16.safetensors")).toEqual([
      ["BF16", 1, -0.10009765625],
      ["BF16", 0.10009765625, 3],
      ["BF16", 1, -2],
      ...integers,
    ]);
    await convert(at("types.safetensors"), at("f16.safetensors"), { dtype: "f16" });
    expect(await types("f16.safetensors")).toEqual([
      ["F16", 1 + 2 ** -8, -0.0999755859375],
      ["F16", 0.0999755859375, 3],
      ["F16", 1, -2],
      ...integers,
    ]);
  });

  it("leaves nothing behind and what was there untouched when it fails", async () => {
    const place = at("fails");
    mkdirSync(place);
    const to = join(place, "old.safetensors");
    writeFileSync(to, "old");
    await writePt(at("large.pt"), new Map([["encoder.a", PtTensor.f32([1e6])]]));
    const truncated = readFileSync(at("large.pt")).subarray(0, 300);
    writeFileSync(at("cut.pt"), truncated);
    const config = writeYaml(folder, "flow.yaml", tinyFlowYaml());
    const cases: [string, () => Promise<unknown>, string, RegExp][] = [
      ["no force", () => convert(at("large.pt"), to), "file_exists", /old\.safetensors exists/],
      [
        "f16",
        () => convert(at("large.pt"), to, { force: true, dtype: "f16" }),
        "dtype_mismatch",
        /"encoder\.a" has 1 of 1 values beyond the range of f16, .*\(the largest is 1\.000e\+6\)/,
      ],
      ["cut", () => convert(at("cut.pt"), to, { force: true }), "file_format", /damaged/],
      [
        "config",
        () => convert(at("large.pt"), to, { force: true, config }),
        "config",
        /holds a vae model, the configuration is one of a flow run/,
      ],
      ["missing", () => convert(at("none.pt"), to, { force: true }), "checkpoint", /does not exist/],
      ["extension", () => convert(at("large.pt"), join(place, "x.pt")), "invalid_argument", /only safetensors/],
      ["folder", () => convert(at("large.pt"), join(place, "no", "x.safetensors")), "io", /x\.safetensors/],
    ];
    for (const [name, run, code, message] of cases) {
      expect([name, await failure(run)]).toEqual([
        name,
        expect.objectContaining({ code, message: expect.stringMatching(message) }),
      ]);
    }
    expect(readdirSync(place)).toEqual(["old.safetensors"]);
    expect(readFileSync(to, "utf8")).toBe("old");
    await convert(at("large.pt"), to, { force: true });
    expect((await contents(to)).tensors.get("encoder.a")?.values).toEqual([1e6]);
  });

  it("is a command", async () => {
    await writePt(at("cli.pt"), await reference());
    const out = at("cli.safetensors");
    const first = await call("convert", "--checkpoint", at("cli.pt"), "--out", out);
    expect(first).toMatchObject({ code: 0, stderr: "" });
    expect(first.stdout).toMatch(/cli\.safetensors: \d+ tensors, \d+\.\d MB, read back\n$/);
    expect(await call("convert", "--checkpoint", at("cli.pt"), "--out", out)).toMatchObject({ code: 2, stdout: "" });
    const forced = await call(
      "convert",
      "--checkpoint",
      at("cli.pt"),
      "--out",
      out,
      "--force",
      "--dtype",
      "bf16",
      "--json",
    );
    expect(JSON.parse(forced.stdout)).toMatchObject({ type: "converted", path: out, kind: "vae" });
    expect((await call("convert", "--checkpoint", at("cli.pt"), "--out", out, "--dtype", "f8")).code).toBe(2);
  });
});

describe("PyTorch checkpoints of a whole model", () => {
  it("give the VAE in a diffusion model, without its loss", async () => {
    const vae = await vaeState("_latent_encoder.");
    const state = new Map([
      ...vae,
      ["_latent_encoder.loss.logvar", PtTensor.f32([0], [])],
      ["_score_network.proj_out.bias", PtTensor.f32([1, 2])],
      ["_something_else.bias", PtTensor.f32([1])],
    ]);
    await writePt(at("flow.pt"), new Map([["model_state_dict", state]]));
    const tensors = await readVaeTensors(at("flow.pt"));
    expect([...tensors.keys()]).toEqual([...(await vaeState()).keys()]);
  });

  it("are refused when they hold another model", async () => {
    await writePt(at("other.pt"), new Map([["conv.weight", PtTensor.f32([1])]]));
    const error = await failure(() => readVaeTensors(at("other.pt")));
    expect(error.message).toContain('holds neither a VAE nor a text-to-video model: its tensors are "conv.weight"');
  });
});
