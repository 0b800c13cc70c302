import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { readSafetensors, type SafetensorsTensor, writeSafetensors } from "../../lib/formats/safetensors.js";
import { unscaled } from "../../lib/formats/scaled-weights.js";
import { failure } from "../support/failure.js";
import { testFolder } from "../support/folder.js";
import { bare, float, floats, json, scaledWeight } from "../support/scaled.js";

const folder = testFolder();
let count = 0;
const opened: { close(): Promise<void> }[] = [];
afterEach(async () => {
  for (const file of opened.splice(0)) await file.close();
});

async function open(tensors: readonly SafetensorsTensor[], metadata: Record<string, string> = {}) {
  const path = join(folder, `${count++}.safetensors`);
  await writeSafetensors(path, tensors, metadata);
  const file = await readSafetensors(path);
  opened.push(file);
  return { file, view: () => unscaled(file, path) };
}

/** The upper halves of float32 numbers, rounded to nearest even. */
const bf16 = (values: Float32Array): Uint16Array => {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  return Uint16Array.from(words, (word) => (word + 0x7fff + ((word >>> 16) & 1)) >>> 16);
};

describe("weights with scales", () => {
  const one = scaledWeight("blocks.0.to_q.weight", [4, 6], 1);
  const rows = scaledWeight("blocks.0.to_k.weight", [4, 6], 2, true);
  const conv = scaledWeight("conv.weight", [3, 2, 1, 2, 2], 3, true);
  const plain = bare("blocks.0.to_q.bias", "BF16", [4]);

  it.each<[string, SafetensorsTensor[], Record<string, string>]>([
    [
      "ComfyUI's first form",
      [
        float("blocks.0.to_q.scale_weight", one.scales),
        float("blocks.0.to_q.scale_input", [3], [1]),
        float("blocks.0.to_k.scale_weight", rows.scales, [4]),
        float("conv.scale_weight", rows.scales.slice(0, 0).concat(conv.scales), [3, 1, 1, 1, 1]),
        bare("scaled_fp8", "F8_E4M3", [2]),
      ],
      {},
    ],
    [
      "its second, the form beside each weight",
      [
        float("blocks.0.to_q.weight_scale", one.scales, [1]),
        float("blocks.0.to_q.input_scale", [0.25]),
        json("blocks.0.to_q.comfy_quant", { format: "float8_e4m3fn", full_precision_matrix_mult: true }),
        float("blocks.0.to_k.weight_scale", rows.scales, [4, 1]),
        json("blocks.0.to_k.comfy_quant", "float8_e4m3fn"),
        float("conv.weight_scale", conv.scales, [3]),
      ],
      {},
    ],
    [
      "the forms in the metadata",
      [
        float("blocks.0.to_q.weight_scale", one.scales, [1, 1]),
        float("blocks.0.to_k.weight_scale", rows.scales, [4, 1]),
        float("conv.weight_scale", conv.scales, [3]),
        bare("diffusion_model.scaled_fp8", "F32", [0]),
      ],
      {
        _quantization_metadata: JSON.stringify({ layers: { "blocks.0.to_q": { format: "float8_e4m3fn" } } }),
        kept: "x",
      },
    ],
  ])("are multiplied: %s", async (_, companions, metadata) => {
    const weights = [one, rows, conv];
    const { file, view } = await open([...weights.map(({ weight }) => weight), plain, ...companions], metadata);
    const found = await view();
    expect([...found.tensors.keys()].sort()).toEqual([...weights.map(({ weight }) => weight.name), plain.name].sort());
    for (const { weight, values } of weights) {
      expect(await found.readF32(weight.name)).toEqual(values);
      const { dtype, shape, byteLength } = found.tensors.get(weight.name) ?? {};
      expect({ dtype, shape, byteLength }).toEqual({
        dtype: "BF16",
        shape: weight.shape,
        byteLength: 2 * values.length,
      });
      const bytes = await found.read(weight.name);
      expect(new Uint16Array(bytes.buffer, bytes.byteOffset, values.length)).toEqual(bf16(values));
      expect(found.locate?.(weight.name)).toBeUndefined();
    }
    expect(found.locate?.(plain.name)).toEqual(file.locate(plain.name));
    expect(found.metadata).toEqual(metadata.kept ? { kept: "x" } : {});
  });

  it("are multiplied whatever their type, integers where their form is known", async () => {
    const form = { format: "int8_tensorwise" };
    const { view } = await open([
      { name: "a.weight", dtype: "F32", shape: [2, 2], data: floats([1, 2, 3, -4]) },
      float("a.scale_weight", [0.5]),
      { name: "b.weight", dtype: "I8", shape: [2, 2], data: new Uint8Array(Int8Array.of(100, -128, 3, 0).buffer) },
      float("b.weight_scale", [0.25, 2], [2, 1]),
      json("b.comfy_quant", form),
    ]);
    const found = await view();
    expect([...(await found.readF32("a.weight"))]).toEqual([0.5, 1, 1.5, -2]);
    expect(found.tensors.get("a.weight")?.dtype).toBe("F32");
    expect([...(await found.readF32("b.weight"))]).toEqual([25, -32, 6, 0]);
  });

  it("leave files without scales as they are, and other tensors called so", async () => {
    const { file, view } = await open([
      bare("a.weight", "F8_E4M3", [2, 2]),
      bare("a.bias", "BF16", [2]),
      bare("lpips.scaling_layer.scale", "F32", [1, 3, 1, 1]),
      bare("spiece_model", "U8", [9]),
    ]);
    expect(await view()).toBe(file);
  });

  const w = () => bare("x.to_q.weight", "F8_E4M3", [4, 32]);
  it.each<[string, SafetensorsTensor[], RegExp, Record<string, string>?]>([
    [
      "blocks along the columns",
      [w(), float("x.to_q.weight_scale", [1, 2, 3, 4, 5, 6, 7, 8], [4, 2])],
      /"x\.to_q\.weight_scale" is F32 \[4,2\] for a weight \[4,32\]/,
    ],
    ["columns", [w(), float("x.to_q.scale_weight", new Array(32).fill(1), [1, 32])], /is F32 \[1,32\] for a weight/],
    ["blocks of exponents", [w(), bare("x.to_q.weight_scale", "F8_E8M0", [4, 1])], /is F8_E8M0 \[4,1\]/],
    ["a scale of nothing", [w(), float("x.to_k.scale_weight", [1])], /scales "x\.to_k\.weight", which is not there/],
    [
      "two scales",
      [w(), float("x.to_q.scale_weight", [1]), float("x.to_q.weight_scale", [1])],
      /both scale "x\.to_q\.weight"/,
    ],
    [
      "an offset",
      [w(), float("x.to_q.zero_point", [1])],
      /"x\.to_q\.zero_point" stands beside the 8-bit weight "x\.to_q\.weight"/,
    ],
    [
      "anything below the weight's name",
      [w(), float("x.to_q.weight.factor", [1])],
      /"x\.to_q\.weight\.factor" stands beside/,
    ],
    [
      "anything of a module inside",
      [w(), float("x.to_q.quantizer.scale", [1])],
      /"x\.to_q\.quantizer\.scale" stands beside/,
    ],
    [
      "ConvRot",
      [
        bare("x.weight", "I8", [4, 256]),
        float("x.weight_scale", [1]),
        json("x.comfy_quant", { format: "int8_tensorwise", convrot: true }),
      ],
      /quantised as int8_tensorwise with ConvRot, which is not read/,
    ],
    [
      "ConvRot among the parameters",
      [
        bare("x.weight", "I8", [4, 256]),
        float("x.weight_scale", [1]),
        json("x.comfy_quant", { format: "int8_tensorwise", params: { convrot: true } }),
      ],
      /with ConvRot/,
    ],
    [
      "mxfp8",
      [w(), bare("x.to_q.weight_scale", "U8", [4, 1]), json("x.to_q.comfy_quant", { format: "mxfp8" })],
      /quantised as mxfp8|is U8 \[4,1\]/,
    ],
    [
      "nvfp4",
      [bare("x.weight", "U8", [4, 16]), float("x.weight_scale_2", [1])],
      /is quantised by nvfp4 \("x\.weight_scale_2"\)/,
    ],
    [
      "a form of the metadata",
      [w()],
      /metadata for x\.to_q says that the weight is quantised as nvfp4/,
      { _quantization_metadata: '{"layers":{"x.to_q":{"format":"nvfp4"}}}' },
    ],
    ["a form without a name", [w(), json("x.to_q.comfy_quant", {})], /quantised as undefined/],
    [
      "integers without a form",
      [bare("x.weight", "I8", [4, 4]), float("x.weight_scale", [1])],
      /"x\.weight" is I8, and nothing says what its numbers stand for/,
    ],
    ["integers alone", [bare("x.weight", "U8", [4, 4])], /"x\.weight" is U8, and nothing says/],
    ["quanto", [bare("x.weight._data", "I8", [4, 4]), float("x.weight._scale", [1])], /is quantised by quanto/],
    [
      "bitsandbytes",
      [bare("x.weight", "U8", [8, 1]), bare("x.weight.quant_state.bitsandbytes__nf4", "U8", [8])],
      /is quantised by bitsandbytes/,
    ],
    ["GPTQ", [bare("x.qweight", "I32", [4, 4])], /is quantised by GPTQ or AWQ/],
    ["nunchaku", [bare("x.wscales", "BF16", [4, 4])], /is quantised by SVDQuant/],
    [
      "blocks of fp8",
      [w(), float("x.to_q.weight_scale_inv", [1], [1, 1])],
      /is quantised by fp8 with a scale for each block/,
    ],
  ])("are refused by name: %s", async (_, tensors, message, metadata) => {
    const { view } = await open(tensors, metadata);
    expect(await failure(view)).toMatchObject({ code: "checkpoint", message: expect.stringMatching(message) });
  });

  it("are refused where their description is damaged, or a scale is no number", async () => {
    for (const [tensors, metadata] of [
      [
        [w(), json("x.to_q.comfy_quant", 0)].map((t, i) => (i ? { ...t, data: Uint8Array.of(0x7b), shape: [1] } : t)),
        {},
      ],
      [[w()], { _quantization_metadata: "{" }],
      [[w()], { _quantization_metadata: "null" }],
      [[w()], { _quantization_metadata: '{"layers":[]}' }],
    ] as [SafetensorsTensor[], Record<string, string>][]) {
      expect(await failure((await open(tensors, metadata)).view)).toMatchObject({ code: "file_format" });
    }
    const { view } = await open([w(), float("x.to_q.scale_weight", [Number.NaN])]);
    const found = await view();
    expect(await failure(() => found.read("x.to_q.weight"))).toMatchObject({
      code: "non_finite",
      message: expect.stringMatching(/scale "x\.to_q\.scale_weight" holds NaN/),
    });
  });
});
