import { resolve } from "node:path";
import { check } from "../../errors.js";
import { SharedLoad } from "../../formats/shared-load.js";
import { gatherRows } from "../../ops/index.js";
import { type Device, device as openDevice, scope, Tensor } from "../../tensor/index.js";
import { PromptCache, type PromptCacheOptions } from "./prompt-cache.js";
import type { T5Encoder } from "./t5-encoder.js";
import { findT5Folder, T5Folder } from "./t5-folder.js";
import { checkPrompts, type PreparedPrompts, paddedLength, type TextEncoder } from "./text-encoder.js";

export interface T5TextEncoderOptions {
  /** The model's name on the Hugging Face hub, for the look-up; see {@link findT5Folder}. */
  version: string;
  /** Its folder, instead of a look-up. */
  path?: string;
  /** Look the version up when nothing is at `path`. */
  fallback?: boolean;
  /** Tokens of every prompt: shorter ones are padded, longer ones cut. */
  maxLength: number;
  device?: Device;
  computeDtype?: "f32" | "bf16";
  /** How its weights are stored; default f32. */
  weights?: "f32" | "bf16";
  cache?: PromptCacheOptions;
  /** Called while the network is loaded, with bytes done and in all. */
  onLoad?: (done: number, total: number) => void;
}

/** After that many calls whose prompts were all in the cache the network's memory is given back. */
const IDLE_CALLS = 64;

/**
 * A frozen T5. The network is loaded when a prompt comes that the cache does not hold, and let go when none has come for
 * a while: a training run on few wordings has its memory for itself. Every prompt is encoded
 * alone and without padding, which no token attends to, so its features don't depend on what it came with; the features
 * of padding are zeros, which the transformer does not read.
 */
export class T5TextEncoder implements TextEncoder {
  readonly trainable = false;
  private readonly network: SharedLoad<T5Encoder>;
  /** Calls of {@link prepare} since a prompt was last encoded. */
  private idle = 0;
  private readonly underway = new Map<string, Promise<Float32Array>>();

  private constructor(
    private readonly folder: T5Folder,
    readonly cache: PromptCache,
    private readonly device: Device,
    private readonly options: T5TextEncoderOptions,
  ) {
    const { computeDtype, weights, onLoad: onProgress } = options;
    this.network = new SharedLoad((signal) => folder.load(device, { computeDtype, weights, signal, onProgress }));
  }

  /** @throws {LtxError} `unavailable` when no folder is found, `checkpoint` or `file_format` when it is not whole. */
  static async open(options: T5TextEncoderOptions): Promise<T5TextEncoder> {
    const { maxLength, fallback, computeDtype = "f32", weights = "f32" } = options;
    check(Number.isInteger(maxLength) && maxLength >= 1, "config", () => {
      return `[t5] max_length must be an integer from 1, got ${maxLength}`;
    });
    const folder = await T5Folder.open(await findT5Folder(options, { fallback }));
    const stored = weights === "f32" ? [] : [weights];
    const fingerprint = [folder.modelHash, folder.tokenizerHash, maxLength, computeDtype, ...stored].join(" ");
    const cache = await PromptCache.open(fingerprint, folder.config.d_model, { ...options.cache, maxRows: maxLength });
    return new T5TextEncoder(folder, cache, options.device ?? openDevice(), options);
  }

  get width(): number {
    return this.folder.config.d_model;
  }

  get maxLength(): number {
    return this.options.maxLength;
  }

  /** Where it was found. */
  get path(): string {
    return resolve(this.folder.path);
  }

  /** What tells its weights from other models'. */
  get modelHash(): string {
    return this.folder.modelHash;
  }

  /** @throws {LtxError} `invalid_argument` for anything but a list of strings; `checkpoint`, `io` from the weights */
  async prepare(prompts: readonly string[], signal?: AbortSignal): Promise<PreparedPrompts> {
    checkPrompts("t5", prompts);
    const rows: Float32Array[] = [];
    for (const prompt of prompts) rows.push(this.cache.get(prompt) ?? (await this.encode(prompt, signal)));
    if (++this.idle > IDLE_CALLS && this.underway.size === 0) this.unload();
    const { width, maxLength, device } = this;
    // Row 0 is the padding's.
    const counts = rows.map((part) => part.length / width);
    const table = new Float32Array((1 + counts.reduce((a, b) => a + b, 0)) * width);
    const length = paddedLength(counts, maxLength);
    const index = new Int32Array(prompts.length * length);
    const mask = new Float32Array(index.length);
    let next = 1;
    for (const [i, part] of rows.entries()) {
      table.set(part, next * width);
      for (let k = 0; k < counts[i]; k++) index[i * length + k] = next++;
      mask.fill(1, i * length, i * length + counts[i]);
    }
    const shape = [prompts.length, length];
    return () =>
      scope(() => {
        const features = Tensor.from(table, [table.length / width, width], { device });
        const embeddings = gatherRows(features, Tensor.from(index, shape, { device }));
        return { embeddings, mask: Tensor.from(mask, shape, { device }) };
      });
  }

  /** From the first word on that is not read whole. */
  cutOff(prompt: string): string {
    if (!this.tokensOf(prompt).longer) return "";
    // Between a beginning that is read whole and one that is not.
    let [read, beyond] = [0, 1];
    while (!this.tokensOf(prompt.slice(0, endOfWords(prompt, beyond))).longer) [read, beyond] = [beyond, 2 * beyond];
    while (beyond - read > 1) {
      const middle = Math.floor((read + beyond) / 2);
      if (this.tokensOf(prompt.slice(0, endOfWords(prompt, middle))).longer) beyond = middle;
      else read = middle;
    }
    return prompt.slice(read === 0 ? 0 : endOfWords(prompt, read)).trim();
  }

  /** The tokens that are read of a prompt, and whether it has more. Of a long prompt no more is looked at than it takes. */
  private tokensOf(prompt: string): { ids: number[]; longer: boolean } {
    const { tokenizer } = this.folder;
    const { maxLength } = this;
    for (let words = maxLength; ; words *= 4) {
      const whole = endOfWords(prompt, words);
      // Writing without spaces is one long word, whose time grows with the square of its length.
      const end = Math.min(whole, words * LONGEST_TOKEN);
      const ids = tokenizer.encode(prompt.slice(0, end));
      // How the end of a part of a word is split depends on what follows.
      const certain = end < whole ? ids.length - MARGIN : ids.length;
      if (certain <= maxLength && end < prompt.length) continue;
      const longer = ids.length > maxLength;
      return { ids: longer ? [...ids.slice(0, maxLength - 1), tokenizer.eos] : ids, longer };
    }
  }

  /** A prompt's features, its tokens x width; two who ask for the same one share the work. */
  private async encode(prompt: string, signal: AbortSignal | undefined): Promise<Float32Array> {
    // Whoever leaves while the network is loaded leaves nobody waiting.
    if (!this.underway.has(prompt)) await this.network.get(signal);
    let features = this.underway.get(prompt);
    if (!features) {
      this.idle = 0;
      features = this.compute(prompt).finally(() => this.underway.delete(prompt));
      this.underway.set(prompt, features);
    }
    return features;
  }

  private async compute(prompt: string): Promise<Float32Array> {
    const network = await this.network.get();
    const hidden = network.forward([this.tokensOf(prompt).ids]);
    try {
      const rows = (await hidden.read()) as Float32Array;
      await this.cache.add(prompt, rows);
      return rows;
    } finally {
      hidden.dispose();
    }
  }

  parameters(): [] {
    return [];
  }

  dispose(): void {
    this.unload();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  private unload(): void {
    this.network.forget().then((network) => network?.dispose());
  }
}

/** A space that parts two words for every tokenizer: letters, digits and signs of ASCII stand by themselves. */
const BETWEEN_WORDS = / (?=[!-~\p{L}\p{N}])/gu;

/** Letters of the longest token of T5's vocabulary. */
const LONGEST_TOKEN = 16;
/** Tokens at the end of a part of a word that may be others in the whole word. */
const MARGIN = 64;

/** Where the first words of a text end: tokens of words don't depend on the words that follow. */
function endOfWords(text: string, words: number): number {
  let count = 0;
  for (const { index } of text.matchAll(BETWEEN_WORDS)) if (++count === words) return index;
  return text.length;
}
