/** The features of prompts by a frozen text encoder: each is computed once, then looked up. */
import { LtxError } from "../../errors.js";
import { exists } from "../../formats/paths.js";
import { readSafetensors, writeSafetensors } from "../../formats/safetensors.js";

export interface PromptCacheOptions {
  /** Where the features are kept between runs; in memory only without it. */
  file?: string;
  /** Largest size in memory without a file: the prompts that were not used for longest go first. */
  capacityBytes?: number;
  /** Rows that a prompt has at most; a file with more is damaged. */
  maxRows?: number;
}

const DEFAULT_CAPACITY = 64 * 2 ** 20;
/** Before the prompt in a tensor's name: the empty prompt needs one too. */
const NAME_PREFIX = "prompt:";
/** The file is written anew after that many new prompts, or that share of those it holds, whichever is more. */
const FLUSH_COUNT = 16;
const FLUSH_SHARE = 1 / 4;

/** Feature rows (tokens x width) f32 by prompt. */
export class PromptCache {
  /** Look-ups that found something, and those that did not. */
  hits = 0;
  misses = 0;
  /** In the order of use, the oldest first. */
  private readonly entries = new Map<string, Float32Array>();
  private bytes = 0;
  private unsaved = 0;
  /** New prompts with which a write is tried again that failed. */
  private retryAt = 0;
  private writing: Promise<void> = Promise.resolve();

  private constructor(
    private readonly fingerprint: string,
    private readonly width: number,
    private readonly options: PromptCacheOptions,
  ) {}

  /**
   * @param fingerprint of all that the features depend on; a file of another one is replaced when it is next written
   */
  static async open(fingerprint: string, width: number, options: PromptCacheOptions = {}): Promise<PromptCache> {
    const cache = new PromptCache(fingerprint, width, options);
    if (options.file && (await exists(options.file))) await cache.restore(options.file);
    return cache;
  }

  private async restore(path: string): Promise<void> {
    const { maxRows = Number.POSITIVE_INFINITY } = this.options;
    try {
      const file = await readSafetensors(path);
      try {
        if (file.metadata.fingerprint !== this.fingerprint) return;
        for (const [name, { dtype, shape }] of file.tensors) {
          const [rows, width] = shape;
          const fits = shape.length === 2 && width === this.width && rows >= 1 && rows <= maxRows;
          if (!name.startsWith(NAME_PREFIX) || dtype !== "F32" || !fits) continue;
          const values = await file.readF32(name);
          if (values.every(Number.isFinite)) this.entries.set(name.slice(NAME_PREFIX.length), values);
        }
      } finally {
        await file.close();
      }
    } catch (error) {
      // The features can be computed again: a damaged file counts as none.
      if (!(error instanceof LtxError)) throw error;
      this.entries.clear();
    }
  }

  get size(): number {
    return this.entries.size;
  }

  get(prompt: string): Float32Array | undefined {
    const found = this.entries.get(prompt);
    if (!found) {
      this.misses++;
      return undefined;
    }
    this.hits++;
    this.entries.delete(prompt);
    this.entries.set(prompt, found);
    return found;
  }

  /** Adds a prompt's features; now and then the file is written. If it can't be, {@link flush} tells. */
  async add(prompt: string, rows: Float32Array): Promise<void> {
    if (this.entries.has(prompt)) return;
    this.entries.set(prompt, rows);
    this.bytes += rows.byteLength;
    this.unsaved++;
    if (!this.options.file) return this.evict();
    if (this.unsaved < Math.max(FLUSH_COUNT, this.size * FLUSH_SHARE, this.retryAt)) return;
    await this.flush().then(
      () => {
        this.retryAt = 0;
      },
      () => {
        this.retryAt = this.unsaved + FLUSH_COUNT;
      },
    );
  }

  private evict(): void {
    const { capacityBytes = DEFAULT_CAPACITY } = this.options;
    for (const [prompt, rows] of this.entries) {
      if (this.bytes <= capacityBytes || this.size === 1) return;
      this.entries.delete(prompt);
      this.bytes -= rows.byteLength;
    }
  }

  /**
   * Writes what is not in the file yet: all of it, or the file stays as it was.
   * @throws LtxError `io`
   */
  flush(): Promise<void> {
    const { file } = this.options;
    const write = async () => {
      if (!file || this.unsaved === 0) return;
      const saving = this.unsaved;
      const tensors = [...this.entries]
        // Text that is no valid Unicode can't name a tensor.
        .filter(([prompt]) => !/\p{Surrogate}/u.test(prompt))
        .map(([prompt, rows]) => ({
          name: NAME_PREFIX + prompt,
          dtype: "F32" as const,
          shape: [rows.length / this.width, this.width],
          data: new Uint8Array(rows.buffer, rows.byteOffset, rows.byteLength),
        }));
      await writeSafetensors(file, tensors, { fingerprint: this.fingerprint });
      this.unsaved -= saving;
    };
    this.writing = this.writing.catch(() => {}).then(write);
    return this.writing;
  }
}
