import { dirname, join } from "node:path";
import { parseVaeParams } from "../../../lib/config/index.js";
import { check, LtxError } from "../../../lib/errors.js";
import { readTensors } from "../../../lib/formats/checkpoint.js";
import { toFloat32 } from "../../../lib/formats/dtypes.js";
import { PytorchTensor, readPytorch } from "../../../lib/formats/pytorch.js";
import { VideoVae } from "../../../lib/models/video-vae/index.js";
import { full, toChannelsFirst, toChannelsLast } from "../../../lib/ops/index.js";
import { constant, evaluate } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";

type Tensors = Awaited<ReturnType<typeof readTensors>>["tensors"];

/** PyTorch's files beside the fixture: their exact values, what the model makes of them, and what must be refused. */
export const checkpointPt: GoldenCase = async (fixture) => {
  const { files, reject, folder } = fixture.config;
  const at = (name: string) => join(dirname(fixture.path), "checkpoints", folder, name);
  for (const [which, same] of [
    ["zip", Object.is],
    ["legacy", Object.is],
    ["module_half", isHalfOf],
  ] as const) {
    if (!files[which]) continue;
    expectParameters(fixture, (await readTensors(at(files[which]))).tensors, files[which], same);
  }
  for (const name of reject ?? []) await expectRejected(at(name));
  const whole = files.zip ?? files.legacy;
  const result = whole ? await modelOutputs(fixture, (await readTensors(at(whole))).tensors) : new Map();
  for (const [name, values] of await storedOutputs(fixture, at)) result.set(name, values);
  return result;
};

/** What the VAE makes of the fixture's video with the values of a file. */
function modelOutputs(fixture: Fixture, tensors: Tensors): Promise<Map<string, Float32Array>> {
  const { files: _, reject: __, folder: ___, note: ____, timestep, ...params } = fixture.config;
  const [batch, channels] = fixture.shape("input/video");
  const told = {
    in_channels: channels,
    out_channels: channels,
    use_quant_conv: fixture.has("param/quant_conv.weight"),
  };
  const vae = new VideoVae(parseVaeParams({ ...told, ...params }, fixture.name));
  vae.requiresGrad(false).loadStateDict(tensors);
  return evaluate(vae, () => {
    const moments = vae.encodeMoments(toChannelsLast(constant(fixture, "input/video")));
    const time = params.timestep_conditioning ? full([batch], timestep) : null;
    const reconstruction = toChannelsFirst(vae.decodeUnclamped(vae.mode(moments), time));
    return { output: { moments: toChannelsFirst(moments), reconstruction } };
  });
}

/** `output/adam.KEY.I` and `output/views.KEY`, as the files hold them. */
async function storedOutputs(fixture: Fixture, at: (name: string) => string): Promise<Map<string, Float32Array>> {
  const { files } = fixture.config;
  const result = new Map<string, Float32Array>();
  const moments = fixture.names("output/adam.");
  if (moments.length > 0) {
    const main = await readPytorch(at(files.zip ?? files.legacy));
    for (const name of moments) {
      const [, key, index] = name.split(".");
      result.set(name, await floats(main, lookUp(main.root, "optimizer_state_dicts", 0, "state", Number(index), key)));
    }
    await main.close();
  }
  const views = fixture.names("output/views.");
  if (views.length > 0) {
    const { tensors } = await readTensors(at(files.views));
    for (const name of views) result.set(name, entryOf(tensors, name.slice("output/views.".length), files.views).data);
  }
  return result;
}

async function floats(file: Awaited<ReturnType<typeof readPytorch>>, tensor: unknown): Promise<Float32Array> {
  check(tensor instanceof PytorchTensor, "checkpoint", () => `[golden] expected a tensor, found ${tensor}`);
  return toFloat32(await file.read(tensor), tensor.dtype) as Float32Array;
}

function lookUp(value: unknown, ...path: readonly (string | number)[]): unknown {
  return path.reduce<unknown>((v, key) => (v instanceof Map ? v.get(key) : (v as unknown[])?.[key as number]), value);
}

function entryOf(tensors: Tensors, key: string, file: string) {
  const entry = tensors.get(key);
  check(entry, "checkpoint", () => `[golden] ${file} has no tensor ${key}`);
  return entry;
}

/** Throws unless `tensors` are the fixture's parameters, no more and no fewer, value by value. */
function expectParameters(
  fixture: Fixture,
  tensors: Tensors,
  file: string,
  same: (found: number, expected: number, dims: number) => boolean,
): void {
  const expected = fixture.state();
  check(expected.size === tensors.size, "checkpoint", () => {
    return `[golden] ${file} holds ${tensors.size} tensors, expected ${expected.size}`;
  });
  for (const [key, { shape, data }] of expected) {
    const entry = entryOf(tensors, key, file);
    const equal =
      entry.shape.join() === shape.join() && data.every((value, i) => same(entry.data[i], value, shape.length));
    check(equal, "checkpoint", () => `[golden] ${key} in ${file} differs from the fixture`);
  }
}

/** Whether `found` is `expected`, in tensors of two or more dimensions rounded to the nearest float16. */
function isHalfOf(found: number, expected: number, dims: number): boolean {
  if (dims < 2) return Object.is(found, expected);
  const exponent = Math.max(Math.floor(Math.log2(Math.abs(expected))), -14);
  return Math.abs(found - expected) <= 2 ** (exponent - 11);
}

async function expectRejected(path: string): Promise<void> {
  let refused = false;
  try {
    await readTensors(path);
  } catch (error) {
    // A file that is missing is no file refused.
    if (!(error instanceof LtxError) || error.code === "io") throw error;
    refused = true;
  }
  check(refused, "checkpoint", () => `[golden] ${path} was read, but must be refused`);
}
