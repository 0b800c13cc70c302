/** T5 models as folders of the Hugging Face hub: where they are found, and how their parts are read. */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { basename, isAbsolute, join } from "node:path";
import { check, LtxError } from "../../errors.js";
import { kindOfFile } from "../../file-kind.js";
import { hubFolder, hubSnapshots } from "../../formats/hub-cache.js";
import { type LoadProgressOptions, loadWeights } from "../../formats/load-weights.js";
import { isFile, isFolder } from "../../formats/paths.js";
import { unscaled } from "../../formats/scaled-weights.js";
import { openShards } from "../../formats/sharded.js";
import type { TensorFile } from "../../formats/tensor-file.js";
import { Initializer } from "../../nn/index.js";
import type { Device } from "../../tensor/index.js";
import { T5Encoder, type T5EncoderConfig } from "./t5-encoder.js";
import { T5Tokenizer } from "./t5-tokenizer.js";

/** What makes a folder a T5. */
export const T5_FILES =
  "config.json, the weights (model.safetensors, or model.safetensors.index.json with its shards, or the same of " +
  "pytorch_model.bin) and tokenizer.json or spiece.model";

/** Where a T5 of the hub's name `version` may lie. */
export async function t5Places(version: string, env: NodeJS.ProcessEnv): Promise<string[]> {
  if (isPath(version)) return [];
  const own = env.LTX_TEXT_ENCODERS;
  const found = await hubSnapshots(version, env);
  return [
    ...(own ? [join(own, version), join(own, basename(version))] : []),
    ...(found.length > 0 ? found : [hubFolder(version, env)]),
  ];
}

/**
 * The folder of a T5: `path` when it is given, else what is found for `version` (such as google/t5-v1_1-base) in the
 * folder that the environment variable LTX_TEXT_ENCODERS names, then in the Hugging Face cache. Nothing is downloaded.
 * @param options.fallback look for `version` also when nothing is at `path`, for a path that another machine wrote down
 * @throws LtxError `unavailable`, naming every place and the files that are needed
 */
export async function findT5Folder(
  { version, path }: { version: string; path?: string },
  options: { fallback?: boolean; env?: NodeJS.ProcessEnv } = {},
): Promise<string> {
  const { fallback = false, env = process.env } = options;
  const places = path === undefined ? [] : [path];
  // As in from_pretrained, a folder of that name comes before the hub's model.
  if (path === undefined || fallback) places.push(version, ...(await t5Places(version, env)));
  for (const place of places) {
    if (await isFolder(place)) return place;
    if (place === path || isPath(place)) await refuseFile(place);
  }
  const where = path === undefined ? "put" : "correct the path, or put";
  throw new LtxError(
    "unavailable",
    `[t5] text encoder ${version} was not found (looked for ${places.join(", ")}). Nothing is downloaded: ${where} ` +
      `${T5_FILES} into a folder and name it by --text-encoder or params.path, or put it as ${version} into the ` +
      "folder that LTX_TEXT_ENCODERS names",
  );
}

/** A name of the hub has neither a beginning of these nor an extension of weights. */
const isPath = (name: string): boolean => isAbsolute(name) || /^\.\.?\/|\.(safetensors|gguf|bin|pt)$/.test(name);

/**
 * A single file in the place of a text encoder's folder, as ComfyUI has it (`t5xxl_fp16.safetensors`).
 * @throws LtxError `checkpoint` when `path` is a file
 */
export async function refuseFile(path: string): Promise<void> {
  if (!(await isFile(path))) return;
  const { what = "a file" } = (await kindOfFile(path)) ?? {};
  throw new LtxError(
    "checkpoint",
    `[t5] ${path} is ${what}, expected a folder: a single file lacks the configuration and the tokenizer. Put it as ` +
      "model.safetensors into a folder with the config.json and the tokenizer.json or spiece.model of the same T5, and " +
      "give that folder",
  );
}

/** A T5's folder, its weights still on disk. */
export class T5Folder {
  private constructor(
    readonly path: string,
    private readonly weights: string,
    readonly config: T5EncoderConfig,
    readonly tokenizer: T5Tokenizer,
    /** What tells this model from others, see {@link fingerprint}. */
    readonly modelHash: string,
    readonly tokenizerHash: string,
  ) {}

  /**
   * Reads all but the weights. The parts may also lie in `text_encoder` and `tokenizer` inside the folder, as diffusers
   * has them.
   * @throws LtxError `checkpoint`, `file_format`, `unavailable`
   */
  static async open(path: string): Promise<T5Folder> {
    await refuseFile(path);
    const inside = async (name: string) => ((await isFolder(join(path, name))) ? join(path, name) : path);
    const weights = await inside("text_encoder");
    const config = await readConfig(join(weights, "config.json"));
    const { tokenizer, hash } = await readTokenizer(await inside("tokenizer"));
    check(tokenizer.size <= config.vocab_size, "checkpoint", () => {
      return `[t5] the tokenizer in ${path} has ${tokenizer.size} tokens, the model only ${config.vocab_size}: they are not of one T5`;
    });
    const file = await openEncoder(weights);
    try {
      checkTensors(file, config, weights);
      return new T5Folder(path, weights, config, tokenizer, await fingerprint(config, file), hash);
    } finally {
      await file.close();
    }
  }

  /**
   * The encoder with its weights, stored as `weights` says (f32 unless given), which are loaded one tensor at a time.
   * @throws LtxError `checkpoint`, `io`
   */
  async load(
    device: Device,
    options: { computeDtype?: "f32" | "bf16"; weights?: "f32" | "bf16" } & LoadProgressOptions = {},
  ): Promise<T5Encoder> {
    const { weights, signal, onProgress, ...compute } = options;
    const file = await openEncoder(this.weights);
    const encoder = new T5Encoder(this.config, new Initializer(device, 0, { weights, values: false }), compute);
    try {
      const names = keysOf(file);
      const rename = (key: string) => names.get(key) ?? key;
      const ignore = (name: string) => !isEncoderKey(name) || name === EMBEDDING_ALIAS;
      await loadWeights(encoder, file, { rename, ignore, source: this.weights, signal, onProgress });
      return encoder;
    } catch (error) {
      encoder.dispose();
      throw error;
    } finally {
      await file.close();
    }
  }
}

/** Of a whole T5 the encoder's half; the embedding stands under either name, or both. */
const isEncoderKey = (key: string): boolean => key === "shared.weight" || key.startsWith("encoder.");

/** The encoder's tensors in a folder, the scales of fp8 weights multiplied in. */
async function openEncoder(folder: string): Promise<TensorFile> {
  const file = await openShards(folder, isEncoderKey);
  return unscaled(file, folder).catch(async (error) => {
    await file.close();
    throw error;
  });
}

const EMBEDDING_ALIAS = "encoder.embed_tokens.weight";

/** The file's name of each of the encoder's keys. */
function keysOf(file: TensorFile): Map<string, string> {
  const keys = [...file.tensors.keys()].filter((key) => isEncoderKey(key) && key !== EMBEDDING_ALIAS);
  const names = new Map(keys.map((key) => [key, key]));
  if (!names.has("shared.weight") && file.tensors.has(EMBEDDING_ALIAS)) names.set("shared.weight", EMBEDDING_ALIAS);
  return names;
}

/** The shapes of an encoder's tensors by key. */
function* expectedShapes(config: T5EncoderConfig): Generator<[string, number[]]> {
  const { d_model: width, d_kv, num_heads: heads, d_ff: inner, vocab_size, relative_attention_num_buckets } = config;
  const attended = heads * d_kv;
  yield ["shared.weight", [vocab_size, width]];
  for (let i = 0; i < config.num_layers; i++) {
    const at = `encoder.block.${i}.layer`;
    for (const name of ["q", "k", "v"]) yield [`${at}.0.SelfAttention.${name}.weight`, [attended, width]];
    yield [`${at}.0.SelfAttention.o.weight`, [width, attended]];
    if (i === 0) {
      yield [`${at}.0.SelfAttention.relative_attention_bias.weight`, [relative_attention_num_buckets, heads]];
    }
    yield [`${at}.0.layer_norm.weight`, [width]];
    for (const name of ["wi_0", "wi_1"]) yield [`${at}.1.DenseReluDense.${name}.weight`, [inner, width]];
    yield [`${at}.1.DenseReluDense.wo.weight`, [width, inner]];
    yield [`${at}.1.layer_norm.weight`, [width]];
  }
  yield ["encoder.final_layer_norm.weight", [width]];
}

function checkTensors(file: TensorFile, config: T5EncoderConfig, path: string): void {
  const names = keysOf(file);
  const problems: string[] = [];
  const expected = new Map(expectedShapes(config));
  for (const [key, shape] of expected) {
    const found = file.tensors.get(names.get(key) ?? "");
    if (!found) problems.push(`${key} is missing (expected [${shape}])`);
    else if (found.shape.join() !== shape.join())
      problems.push(`${key} has shape [${found.shape}], expected [${shape}]`);
  }
  for (const key of names.keys()) if (!expected.has(key)) problems.push(`${key} is not part of such an encoder`);
  check(problems.length === 0, "checkpoint", () => {
    const more = problems.length > 5 ? ` and ${problems.length - 5} more` : "";
    return `[t5] the weights in ${path} do not fit its config.json: ${problems.slice(0, 5).join("; ")}${more}`;
  });
}

async function readConfig(path: string): Promise<T5EncoderConfig> {
  let json: unknown;
  try {
    json = JSON.parse(await readFile(path, "utf8"));
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === "ENOENT";
    throw new LtxError(
      missing ? "checkpoint" : "file_format",
      `[t5] ${path} ${missing ? "is missing" : `cannot be read (${(cause as Error).message})`}: a T5's folder needs ${T5_FILES}`,
      { cause },
    );
  }
  return (await import("./t5-config.js")).parseT5Config(json, path);
}

async function readTokenizer(folder: string): Promise<{ tokenizer: T5Tokenizer; hash: string }> {
  const readers = {
    "tokenizer.json": (bytes: Buffer, name: string) => T5Tokenizer.fromJson(bytes.toString("utf8"), name),
    "spiece.model": (bytes: Buffer, name: string) => T5Tokenizer.fromSentencePiece(bytes, name),
  };
  for (const [name, read] of Object.entries(readers)) {
    const path = join(folder, name);
    const bytes = await readFile(path).catch((cause: NodeJS.ErrnoException) => {
      if (cause.code === "ENOENT") return null;
      throw new LtxError("io", `[t5] cannot read ${path}: ${cause.message}`, { cause });
    });
    if (bytes) return { tokenizer: read(bytes, path), hash: createHash("sha256").update(bytes).digest("hex") };
  }
  throw new LtxError("checkpoint", `[t5] ${folder} has no tokenizer: expected tokenizer.json or spiece.model`);
}

/**
 * Tells one model from another without reading all of its gigabytes: the hash of its sizes, of its tensors' names, types
 * and shapes, and of the values in its first and last block and its last norm, since any training moves them all. How the
 * files are cut does not matter.
 */
async function fingerprint(config: T5EncoderConfig, file: TensorFile): Promise<string> {
  const hash = createHash("sha256").update(JSON.stringify(config));
  const hashed = ["encoder.block.0.", `encoder.block.${config.num_layers - 1}.`, "encoder.final_layer_norm."];
  for (const [key, name] of [...keysOf(file)].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const entry = file.tensors.get(name);
    hash.update(`\n${key} ${entry?.dtype} ${entry?.shape}\n`);
    if (hashed.some((prefix) => key.startsWith(prefix))) hash.update(await file.read(name));
  }
  return hash.digest("hex");
}
