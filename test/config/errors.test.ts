import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  loadConfig,
  parseConfig,
  parseLossParams,
  parseTransformerParams,
  parseVaeParams,
} from "../../lib/config/index.js";
import { LtxError } from "../../lib/errors.js";

const CONFIGS = join(__dirname, "..", "..", "configs");
const TEXTS = {
  vae: readFileSync(join(CONFIGS, "moving_mnist/autoencoder.yaml"), "utf8"),
  flow: readFileSync(join(CONFIGS, "moving_mnist/ltx_video.yaml"), "utf8"),
  quick: readFileSync(join(CONFIGS, "quickstart.yaml"), "utf8"),
};

function messageOf(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    expect(error).toBeInstanceOf(LtxError);
    expect((error as LtxError).code).toBe("config");
    expect((error as LtxError).message).toMatch(/^\[config\] /);
    return (error as LtxError).message;
  }
  throw new Error("nothing was thrown");
}

const fault = (text: string) => messageOf(() => parseConfig(text, "x.yaml"));

/** The message for a shipped file with each `from` replaced by its `to`, where it first stands. */
function edited(file: keyof typeof TEXTS, ...edits: [from: string, to: string][]): string {
  const text = edits.reduce((text, [from, to]) => {
    expect(text).toContain(from);
    return text.replace(from, () => to);
  }, TEXTS[file]);
  return fault(text);
}

describe("values", () => {
  const cases: [file: keyof typeof TEXTS, from: string, to: string, message: string][] = [
    ["vae", "batch_size: 8", "batch_size: '8'", 'training.batch_size: found "8" (text), expected a number'],
    ["vae", "batch_size: 8", "batch_size: 8.5", "training.batch_size: found 8.5, expected a whole number"],
    ["vae", "batch_size: 8", "batch_size: 0", "training.batch_size: found 0, expected at least 1, nearest 1"],
    ["vae", "batch_size: 8", "batch_size: true", "training.batch_size: found true, expected a number"],
    ["vae", "batch_size: 8", "batch_size: ", "training.batch_size: found null, expected a number"],
    ["vae", "batch_size: 8", "batch_size: [8]", "training.batch_size: found a list of 1, expected a number"],
    ["vae", "batch_size: 8", "batch_size: {a: 8}", "training.batch_size: found a section of keys, expected a number"],
    ["vae", "kl_weight: 1.0e-06", "kl_weight: .inf", "kl_weight: found Infinity, expected a finite number"],
    ["vae", "kl_weight: 1.0e-06", "kl_weight: -1", "kl_weight: found -1, expected at least 0, nearest 0"],
    ["vae", "use_3d: true", "use_3d: 1", "use_3d: found 1, expected true or false"],
    ["vae", "rec_loss: l2", "rec_loss: l3", 'rec_loss: found "l3" (text), expected one of l1, l2; did you mean l1?'],
    ["vae", "dims: 3", "dims: 2", "vae_config.params.dims: found 2, only 3 is supported"],
    ["vae", "latent_channels: 128", "# none", "vae_config.params.latent_channels: missing, expected a number"],
    ["vae", "mixed_precision: bf16", "mixed_precision: fp16", "expected one of no, bf16; did you mean bf16?"],
    [
      "vae",
      "mixed_precision: bf16",
      "mixed_precision: bf16\n  ema_decay: 1",
      "ema_decay: found 1, expected less than 1",
    ],
    [
      "vae",
      "mixed_precision: bf16",
      "mixed_precision: bf16\n  learning_rate: 0",
      "learning_rate: found 0, expected more than 0",
    ],
    [
      "vae",
      "[res_x, 4]",
      "[res_z, 4]",
      'vae_config.params.encoder_blocks[0][0]: found "res_z" (text), expected one of res_x,',
    ],
    ["vae", "[res_x, 4]", "res_x", 'encoder_blocks[0]: found "res_x" (text), expected a list'],
    ["vae", "[res_x, 4]", "[res_x]", "encoder_blocks[0]"],
    [
      "vae",
      "[res_x, 4]",
      "[res_x, many]",
      'encoder_blocks[0][1]: found "many" (text), expected a number or a section of keys',
    ],
    [
      "vae",
      "[res_x, 4]",
      "[res_x, { num_layers: 0 }]",
      "encoder_blocks[0][1].num_layers: found 0, expected at least 1",
    ],
    [
      "vae",
      "[res_x, 4]",
      "[res_x, { num_layers: 1001 }]",
      "encoder_blocks[0][1].num_layers: found 1001, expected at most 1000",
    ],
    ["vae", "[res_x, 4]", "[res_x, 20000000]", "encoder_blocks[0][1]: found 20000000, expected at most 1000"],
    [
      "vae",
      "[res_x, 4]",
      "[res_x, { num_layer: 4 }]",
      'encoder_blocks[0][1].num_layer: unknown key, did you mean "num_layers"?',
    ],
    [
      "vae",
      "[compress_all, 1]",
      "[compress_all, { multipliers: 2 }]",
      'encoder_blocks[1][1].multipliers: unknown key, did you mean "multiplier"?',
    ],
    [
      "vae",
      "[compress_all, 1]",
      "[compress_time, { multiplier: 2 }]",
      "encoder_blocks[1][1].multiplier: compress_time: takes no keys",
    ],
    ["flow", "dropout: 0.0", "dropout: 0.1", "score_network.params.dropout: found 0.1, only 0 is supported"],
    ["flow", "double_self_attention: false", "double_self_attention: true", "found true, only false is supported"],
    [
      "flow",
      "activation_fn: gelu-approximate",
      "activation_fn: glu",
      'found "glu" (text), expected one of gelu, gelu-approximate, geglu, geglu-approximate',
    ],
    ["flow", "[20, 2048, 2048]", "[20, 2048]", "positional_embedding_max_pos: found a list of 2, expected 3 entries"],
    [
      "flow",
      "classifier_free_guidance: 1.0",
      "classifier_free_guidance: 0.5",
      "found 0.5, expected at least 1, nearest 1",
    ],
    ["flow", "max_time: 1.0", "max_time: 2.0", "noise_scheduler.params.max_time: found 2, only 1 is supported"],
    ["flow", "distribution: logit-normal", "distribution: logit", "one of logit-normal, uniform, uniform-clipped"],
    ["flow", "params: {}", "params: { a: 1 }", "diffusion.sampling.params.a: takes no keys"],
  ];
  it.each(cases)("%s: %s -> %s", (file, from, to, message) => {
    expect(edited(file, [from, to])).toContain(message);
  });
});

describe("keys and targets", () => {
  it("suggests the key that was meant, with the line", () => {
    expect(edited("vae", ["  batch_size: 8", "  batchsize: 8"])).toMatch(
      /^\[config\] x\.yaml: line \d+: training\.batchsize: unknown key, did you mean "batch_size"\?$/,
    );
    const line = TEXTS.vae.split("\n").findIndex((l) => l.includes("batch_size: 8")) + 1;
    expect(edited("vae", ["  batch_size: 8", "  batchsize: 8"])).toContain(`line ${line}:`);
  });
  it("lists what is allowed where nothing is near", () => {
    expect(edited("vae", ["  batch_size: 8", "  qqqqq: 8"])).toContain(
      "training.qqqqq: unknown key, allowed here: dataset,",
    );
  });
  it("knows the older names", () => {
    expect(edited("vae", ["adversarial_weight: 0.5", "disc_weight: 0.5"])).toContain(
      'disc_weight: this key is now called "adversarial_weight"',
    );
  });
  it("lists the known targets", () => {
    expect(edited("vae", ["ltx_vae.CausalVideoAutoencoder", "kl.AutoencoderKL"])).toContain(
      'vae_config.target: found "xdiffusion.autoencoders.kl.AutoencoderKL" (text), expected one of ' +
        "xdiffusion.autoencoders.ltx_vae.CausalVideoAutoencoder, video-vae",
    );
    expect(edited("flow", ["T5TextEmbedder", "T5TextEmbeder"])).toContain(
      "expected one of xdiffusion.layers.embedding.T5TextEmbedder, t5, byte; " +
        "did you mean xdiffusion.layers.embedding.T5TextEmbedder?",
    );
    expect(edited("flow", ["torch.nn.Identity", "torch.nn.Linear"])).toContain("only torch.nn.Identity is supported");
  });
  it("keeps the keys of the text encoders apart", () => {
    expect(edited("quick", ["layers: 2, heads", "version: x, heads"])).toContain(
      "flow.diffusion.context_preprocessing[0].params.version: unknown key, allowed here: width, layers, heads, max_length",
    );
  });
  it("takes __proto__ for an unknown key like any other", () => {
    expect(edited("vae", ["image_size: 64", "image_size: 64\n  __proto__: 3"])).toContain(
      "data.__proto__: unknown key",
    );
  });
  it("lists all problems at once", () => {
    const message = edited(
      "vae",
      ["batch_size: 8", "batch_size: none"],
      ["dims: 3", "dim: 3"],
      ["norm_layer: pixel_norm", "norm_layer: pixel"],
    );
    expect(message).toContain("x.yaml: 3 problems\n  - line ");
    for (const part of ["params.dim: unknown key", "params.norm_layer: found", "batch_size: found"]) {
      expect(message).toContain(part);
    }
  });
  it("stops listing after twenty", () => {
    const many = Array.from({ length: 50 }, (_, i) => `zzzzzzz${i}: 1`).join("\n");
    expect(fault(`${TEXTS.vae}\n${many}`)).toMatch(/50 problems[\s\S]*and 30 more$/);
  });
});

describe("fields that must fit together", () => {
  const check = (file: keyof typeof TEXTS, edits: [string, string][], ...messages: string[]) => {
    const text = edited(file, ...edits);
    for (const message of messages) expect(text).toContain(message);
  };
  it("frames and sizes that the VAE can take", () => {
    check(
      "vae",
      [
        ["input_number_of_frames: 25", "input_number_of_frames: 117"],
        ["input_number_of_frames: 25\n  frame", "input_number_of_frames: 117\n  frame"],
      ],
      "data.input_number_of_frames: frames 117: needs 8k+1, nearest 113 or 121",
      "vae_config.params.input_number_of_frames: frames 117",
    );
    check(
      "vae",
      [["image_size: 64", "image_size: 50"]],
      "data.image_size: height 50: needs a multiple of 32, nearest 32 or 64",
    );
    check("vae", [["image_size: 64", "image_size: 30"]], "nearest 32");
    check(
      "vae",
      [["image_size: 64", "height: 64\n  width: 70"]],
      "data.width: width 70: needs a multiple of 32, nearest 64 or 96",
    );
    check(
      "flow",
      [["output_frames: 25", "output_frames: 24"]],
      "diffusion.sampling.output_frames: frames 24: needs 8k+1, nearest 17 or 25",
    );
    check("quick", [["output_width: 32", "output_width: 33"]], "needs a multiple of 8, nearest 32 or 40");
  });
  it("reports a square size once", () => {
    expect(edited("vae", ["image_size: 64", "image_size: 50"])).not.toContain("problems");
  });
  it("the VAE's data", () => {
    check("vae", [["in_channels: 1", "in_channels: 3"]], "in_channels: found 3, but data.num_channels is 1");
    const impossible = edited("vae", ["input_number_of_frames: 25", "input_number_of_frames: 26"]);
    expect(impossible).toContain("vae_config.params.input_number_of_frames: frames 26: needs 8k+1, nearest 25 or 33");
    expect(impossible).not.toContain("problems");
    check("vae", [["image_size: 64", "image_size: 64\n  height: 32"]], "data.height: found 32, but image_size is 64");
    check("vae", [["image_size: 64", "height: 64"]], "data.width: missing, give width or image_size");
    check(
      "vae",
      [["image_size: 64", "image_size: 64\n  digit_size: 65"]],
      "digits must fit into the frame, nearest 64",
    );
    check("vae", [["image_size: 64", "image_size: 64\n  min_speed: 6"]], "expected at least min_speed, nearest 6");
    check(
      "vae",
      [["image_size: 64", "image_size: 64\n  source: npz"]],
      'data.path: missing, source "npz" needs the place of its files',
    );
  });
  it("encoder and decoder", () => {
    check(
      "vae",
      [
        [
          "      - [res_x, 3]\n      - [compress_all, 1]\n      - [res_x, 3]\n      - [res_x_y, 1]",
          "      - [compress_space, 1]\n      - [res_x_y, 1]",
        ],
      ],
      "decoder_blocks: the encoder divides frames by 8, the decoder multiplies by 4: they need as many compress_time and compress_all blocks",
    );
    check("vae", [["use_quant_conv: false", "use_quant_conv: true"]], 'latent_log_var "uniform" has one variance');
    check(
      "vae",
      [["norm_layer: pixel_norm", "norm_layer: group_norm\n    norm_num_groups: 48"]],
      "cannot split 128 channels into norm_num_groups 48",
    );
  });
  it("the heads of attention in the decoder", () => {
    const block = "        - [res_x_y, 1]\n        - [compress_all, 1]\n      norm";
    const withAttention = (params: string) =>
      block.replace("[compress_all", `[attn_res_x, ${params}]\n        - [compress_all`);
    check("quick", [[block, withAttention("2")]], "decoder_blocks[2]: attn_res_x needs attention_head_dim");
    check("quick", [[block, withAttention("{ attention_head_dim: 7 }")]], "attention_head_dim 7 does not divide the");
  });
  it("decoder upsampling that the channels allow", () => {
    check(
      "quick",
      [
        [
          "        - [res_x_y, 1]\n        - [compress_all, 1]\n      norm",
          "        - [res_x_y, 1]\n        - [compress_all, { residual: true, multiplier: 3 }]\n      norm",
        ],
      ],
      "decoder_blocks[2]: compress_all with residual needs a multiplier that divides 8",
    );
  });
  it("the loss", () => {
    check("vae", [["use_3d: true", "use_3d: false"]], "wavelet_loss_weight: above 0 needs use_3d: true");
    check(
      "vae",
      [["disc_in_channels: 1", "disc_in_channels: 3"]],
      "disc_in_channels: found 3, but the video has 1 channels",
    );
    check(
      "quick",
      [["adversarial_weight: 0", "adversarial_weight: 0.5"]],
      "found 3, which needs frames, height and width of 24 or more (here 9x32x32); nearest 1, or adversarial_weight: 0",
    );
  });
  it("the transformer", () => {
    check(
      "flow",
      [["input_channels: 128", "input_channels: 64"]],
      "input_channels: found 64, the channels of the VAE's latents are 128",
    );
    check("flow", [["out_channels: 128", "out_channels: 64"]], "out_channels: found 64, the channels");
    check(
      "flow",
      [["input_number_of_frames: 4", "input_number_of_frames: 5"]],
      "found 5, the frames of the VAE's latents are 4",
    );
    check(
      "flow",
      [["input_spatial_size: 2", "input_spatial_size: 3"]],
      "found 3, height and width of the VAE's latents are 2",
    );
    check(
      "flow",
      [["image_size: 64", "height: 64\n  width: 96"]],
      "found 2, the VAE's latents are not square: write [2, 3]",
    );
    check(
      "flow",
      [["num_attention_heads: 12", "num_attention_heads: 11"]],
      "found 768, needs num_attention_heads x attention_head_dim = 704",
    );
    check("flow", [["caption_channels: 768", "caption_channels: 512"]], "found 512, the text encoder's width is 768");
    check(
      "quick",
      [["caption_channels: 128", "caption_channels: None"]],
      "without caption_channels the width must be the text encoder's",
    );
    check(
      "quick",
      [["width: 128, layers", "width: 130, layers"]],
      "params.width: found 130, needs a multiple of heads 4",
    );
  });
  it("times and steps", () => {
    check("flow", [["N: 1000", "N: 500"]], "sde.params.N: found 500, but noise_scheduler.params.steps is 1000");
    check("quick", [["steps: 40", "steps: 1"]], "initial_timestep: found 1, needs less than the 1 steps, nearest 0");
    check(
      "flow",
      [["num_training_steps: 100000", "num_training_steps: 10\n  steps: 20"]],
      "steps: found 20, but num_training_steps is 10",
    );
    check(
      "quick",
      [["steps: 2500", "steps: 50"]],
      "warmup_steps: found 50, a cosine over 50 steps needs fewer, nearest 49",
    );
    check(
      "flow",
      [["output_channels: 1", "output_channels: 3"]],
      "output_channels: found 3, but the video has 1 channels",
    );
  });
  it("a quickstart names its VAE once", () => {
    const block =
      "    latent_encoder:\n      target: video-vae\n      params: { latent_channels: 16, encoder_blocks: [[res_x, 1]], decoder_blocks: [[res_x, 1]] }\n";
    check(
      "quick",
      [["    score_network:\n", `${block}    score_network:\n`]],
      "flow.diffusion.latent_encoder: leave out, the vae section is used",
    );
  });
});

describe("text that is no configuration", () => {
  const cases: [name: string, text: string, message: string][] = [
    ["empty", "", "expected a mapping of sections, found nothing"],
    ["a list", "- 1", "expected a mapping of sections, found a list"],
    ["a word", "hello", "expected a mapping of sections, found a string"],
    ["not closed", "a: [1", "line 1: "],
    ["twice the same key", "a: 1\na: 2", "line 2: a key is written twice in one section"],
    ["two documents", "a: 1\n---\nb: 2", "line 2: a second document starts"],
    ["unknown tag", "a: !!python/object x", "Unresolved tag"],
    ["deep nesting", "[".repeat(50000), "nested too deeply"],
    ["too long", `# ${"x".repeat(2 ** 20)}`, "a configuration may have 1048576"],
    ["unknown kind", "difusion: 1", 'difusion: unknown key, did you mean "diffusion"?'],
    ["two kinds", "vae_config: {}\ndiffusion: {}", "mixes several kinds of file"],
    ["section empty", "vae_config:\ndata:\n", "vae_config: found null, expected a section of keys"],
    ["half a quickstart", "vae: {}\n", "flow: missing, expected a section of keys"],
  ];
  it.each(cases)("%s", (_, text, message) => expect(fault(text)).toContain(message));

  it("refuses aliases that unfold without end", () => {
    const rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"];
    for (let i = 1; i < 8; i++)
      rows.push(
        `a${i}: &a${i} [${Array(10)
          .fill(`*a${i - 1}`)
          .join(", ")}]`,
      );
    expect(fault(rows.join("\n"))).toContain("Excessive alias count");
  });
});

describe("files", () => {
  let dir: string;
  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), "ltx-config-"));
  });
  afterAll(() => rmSync(dir, { recursive: true }));
  const rejection = async (path: string) => {
    const error: unknown = await loadConfig(path).catch((e: unknown) => e);
    return messageOf(() => {
      throw error;
    });
  };
  it("names a missing file, a folder, bytes that are no text, a file too large", async () => {
    const missing = join(dir, "missing.yaml");
    expect(await rejection(missing)).toBe(`[config] ${missing}: no such file`);
    expect(await rejection(dir)).toBe(`[config] ${dir}: is a folder, expected a YAML file`);
    const binary = join(dir, "binary.yaml");
    writeFileSync(binary, Buffer.from([0x61, 0x3a, 0xff, 0xfe]));
    expect(await rejection(binary)).toBe(`[config] ${binary}: is not UTF-8 text`);
    const large = join(dir, "large.yaml");
    writeFileSync(large, Buffer.alloc(2 ** 20 + 1, 0x23));
    expect(await rejection(large)).toContain("has 1048577 bytes, a configuration may have 1048576");
    expect(await rejection(join(binary, "x.yaml"))).toContain("cannot be read (ENOTDIR");
    expect(await rejection("a\0b")).toContain("cannot be read");
  });
});

describe("parameters that stand alone", () => {
  it("are checked like those of a file", () => {
    const blocks = { encoder_blocks: [["res_x", 1]], decoder_blocks: [["res_x", 1]] };
    expect(parseVaeParams({ latent_channels: 4, ...blocks }, "m")).toMatchObject({ base_channels: 128, patch_size: 1 });
    expect(messageOf(() => parseVaeParams({ ...blocks, latent_chanels: 4 }, "m.safetensors"))).toContain(
      'latent_chanels: unknown key, did you mean "latent_channels"?',
    );
    expect(messageOf(() => parseVaeParams(null, "m"))).toBe("[config] m: found null, expected a section of keys");
    expect(messageOf(() => parseTransformerParams([], "m"))).toContain("found a list of 0, expected a section of keys");
    expect(parseLossParams({}, "m", 3)).toMatchObject({ disc_in_channels: 3, rec_loss: "l1", use_nll: true });
  });
});

describe("the order of an array's axes", () => {
  const withAxes = (axes: string) =>
    TEXTS.vae.replace("image_size:", `source: npy\n  path: x.npy\n  axes: "${axes}"\n  image_size:`);

  it.each(["NFHW", "FNHW", "NFHWC", "NFCHW", "NCFHW", "CNFHW", "(NF)HW", "(NF)CHW", "(NF)HWC"])("may be %s", (axes) => {
    expect(parseConfig(withAxes(axes), "x.yaml")).toMatchObject({ data: { axes } });
  });

  it.each(["", "NHW", "NFWH", "NFHHW", "NFHWCC", "CNFHWC", "HWNF", "nfhw", "NF(HW)", "NFHWX", "(NF)NHW"])(
    "may not be %s",
    (axes) => {
      expect(fault(withAxes(axes))).toContain("data.axes");
    },
  );

  it("is for arrays", () => {
    expect(edited("vae", ["image_size:", "axes: NFHW\n  image_size:"])).toContain(
      'data.axes: is for arrays: source "npz" or "npy"',
    );
  });
});
