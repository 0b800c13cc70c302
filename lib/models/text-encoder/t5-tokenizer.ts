import type { Tokenizer } from "@huggingface/tokenizers";
import { integer } from "../../arguments.js";
import { check, LtxError } from "../../errors.js";
import { parseSentencePiece } from "../../formats/sentencepiece.js";
import { Charsmap } from "./charsmap.js";

/** The sentinels that T5 was pretrained with; a tokenizer puts them behind SentencePiece's own pieces. */
const EXTRA_IDS = 100;
const SPACE = "▁";

/** T5's tokenizer: SentencePiece Unigram after its own Unicode normalization, `</s>` behind every text. */
export class T5Tokenizer {
  private constructor(
    private readonly tokenizer: Tokenizer,
    /** What messages call it. */
    private readonly name: string,
    /** Of `</s>` and of padding. */
    readonly eos: number,
    readonly pad: number,
    /** Ids end before this one; a SentencePiece model's without the sentinels, which are not its own. */
    readonly size: number,
    private readonly end: number,
  ) {}

  /**
   * From the contents of a `tokenizer.json`.
   * @throws {LtxError} `file_format` when it is damaged or no T5 tokenizer.
   */
  static fromJson(text: string, name = "tokenizer.json"): T5Tokenizer {
    let json: TokenizerJson;
    try {
      json = JSON.parse(text);
    } catch (cause) {
      throw new LtxError("file_format", `[tokenizer] ${name} is no valid JSON (${(cause as Error).message})`, {
        cause,
      });
    }
    return T5Tokenizer.build(json, name);
  }

  /**
   * From the contents of a SentencePiece model (`spiece.model`).
   * @throws {LtxError} `file_format`, `unavailable`
   */
  static fromSentencePiece(bytes: Uint8Array, name = "spiece.model"): T5Tokenizer {
    const { pieces, charsmap, addDummyPrefix, removeExtraWhitespaces } = parseSentencePiece(bytes, name);
    const idOf = (text: string) => pieces.findIndex((piece) => piece.text === text);
    const sentinels = Array.from({ length: EXTRA_IDS }, (_, i) => `<extra_id_${EXTRA_IDS - 1 - i}>`);
    const normalizers: unknown[] = [];
    if (charsmap.length > 0) {
      normalizers.push({ type: "Precompiled", precompiled_charsmap: Buffer.from(charsmap).toString("base64") });
    }
    if (removeExtraWhitespaces) {
      normalizers.push({ type: "Strip", strip_left: false, strip_right: true });
      normalizers.push({ type: "Replace", pattern: { Regex: " {2,}" }, content: SPACE });
    }
    const space = { type: "Metaspace", replacement: SPACE, prepend_scheme: addDummyPrefix ? "always" : "never" };
    // Written out in a text they are what they stand for, with no space beside a sentinel, as in transformers.
    const added = pieces.flatMap(({ text, type }, id) => {
      const special = type === "control" || type === "unknown";
      return special || type === "user_defined" ? [{ id, content: text, special }] : [];
    });
    const extra = sentinels.map((content, i) => ({
      id: pieces.length + i,
      content,
      special: true,
      lstrip: true,
      rstrip: true,
    }));
    const json: TokenizerJson = {
      added_tokens: [...added, ...extra],
      normalizer: { type: "Sequence", normalizers },
      pre_tokenizer: space,
      post_processor: {
        type: "TemplateProcessing",
        single: [{ Sequence: { id: "A", type_id: 0 } }, { SpecialToken: { id: "</s>", type_id: 0 } }],
        pair: [],
        special_tokens: { "</s>": { id: "</s>", ids: [idOf("</s>")], tokens: ["</s>"] } },
      },
      decoder: space,
      model: {
        type: "Unigram",
        unk_id: pieces.findIndex(({ type }) => type === "unknown"),
        vocab: [...pieces.map(({ text, score }): [string, number] => [text, score]), ...sentinels.map(unscored)],
      },
    };
    return T5Tokenizer.build(json, name, pieces.length);
  }

  private static build(json: TokenizerJson, name: string, size?: number): T5Tokenizer {
    const { type, vocab, unk_id: unknown } = json?.model ?? {};
    check(type === "Unigram" && Array.isArray(vocab) && vocab.every(isScored), "file_format", () => {
      return `[tokenizer] ${name} expects a Unigram model with a scored vocabulary, as T5 has, found model type ${JSON.stringify(type)}`;
    });
    const eos = vocab.findIndex(([text]) => text === "</s>");
    const pad = vocab.findIndex(([text]) => text === "<pad>");
    const known = Number.isSafeInteger(unknown) && Number(unknown) >= 0 && Number(unknown) < vocab.length;
    check(eos >= 0 && pad >= 0 && known, "file_format", () => {
      return `[tokenizer] ${name} lacks one of T5's special tokens: </s> (${eos}), <pad> (${pad}), unknown (${unknown})`;
    });
    const end = checkedIds(json.added_tokens, vocab, name).reduce((n, id) => Math.max(n, id + 1), vocab.length);
    let tokenizer: Tokenizer;
    try {
      // Here and not above: a program that needs no text should not wait for it.
      const library = require("@huggingface/tokenizers") as typeof import("@huggingface/tokenizers");
      tokenizer = new library.Tokenizer(json, { eos_token: "</s>" });
      normalizeExactly(tokenizer, name);
    } catch (cause) {
      if (cause instanceof LtxError) throw cause;
      throw new LtxError("file_format", `[tokenizer] ${name} cannot be read (${(cause as Error).message})`, { cause });
    }
    return new T5Tokenizer(tokenizer, name, eos, pad, size ?? end, end);
  }

  /** The ids of a text with `</s>` at their end, at most `maxLength` of them; a longer text loses its last tokens. */
  encode(text: string, maxLength?: number): number[] {
    if (maxLength !== undefined) integer("tokenizer", "maxLength", maxLength, 1);
    let ids: number[];
    try {
      ids = this.tokenizer.encode(text, { add_special_tokens: false }).ids;
    } catch (cause) {
      const reason = (cause as Error).message;
      throw new LtxError("file_format", `[tokenizer] ${this.name} fails at a text (${reason}): it is damaged`, {
        cause,
      });
    }
    const wrong = ids.find((id) => !Number.isSafeInteger(id) || id < 0 || id >= this.end);
    check(wrong === undefined, "file_format", () => {
      return `[tokenizer] ${this.name} gives the id ${JSON.stringify(wrong)}, expected whole numbers below ${this.end}: it is damaged`;
    });
    return [...ids.slice(0, maxLength === undefined ? undefined : maxLength - 1), this.eos];
  }
}

const unscored = (text: string): [string, number] => [text, 0];
const isScored = (entry: unknown): boolean =>
  Array.isArray(entry) && typeof entry[0] === "string" && Number.isFinite(entry[1]);

/** The ids of tokens that stand beside the vocabulary, or name entries of it. @throws LtxError `file_format` */
function checkedIds(added: unknown, vocab: TokenizerJson["model"]["vocab"], name: string): number[] {
  const fail = (reason: string): never => {
    throw new LtxError("file_format", `[tokenizer] ${name}: ${reason}; the file is damaged`);
  };
  if (added === undefined || added === null) return [];
  if (!Array.isArray(added)) return fail("its added_tokens are not a list");
  const contents = new Map<number, string>();
  for (const token of added) {
    const { id, content } = (token ?? {}) as { id?: unknown; content?: unknown };
    const shown = JSON.stringify(content)?.slice(0, 60);
    if (typeof content !== "string" || content === "") return fail(`an added token has the content ${shown}`);
    // Those behind the vocabulary follow each other; a gap would be an id without a token.
    if (!Number.isSafeInteger(id) || Number(id) < 0 || Number(id) >= vocab.length + added.length) {
      return fail(
        `the added token ${shown} has the id ${JSON.stringify(id)}, expected a whole number below ${vocab.length + added.length}`,
      );
    }
    const index = id as number;
    const there = contents.get(index) ?? vocab[index]?.[0] ?? content;
    if (there !== content)
      return fail(`the id ${index} is that of ${JSON.stringify(there)} and of the added token ${shown}`);
    contents.set(index, content);
  }
  return [...contents.keys()];
}

/** The parts of a tokenizer.json that are looked at here. */
interface TokenizerJson {
  model: { type: string; unk_id: number | null; vocab: [text: string, score: number][] };
  normalizer: unknown;
  [part: string]: unknown;
}

/** A normalizer of the library: a step, or a sequence of steps. */
interface Normalizer {
  config: { type: string; precompiled_charsmap?: string | null };
  normalizers?: Normalizer[];
  normalize(text: string): string;
}

/** Has the tokenizer apply the file's own normalization table, for which its library puts an approximation by NFKC. */
function normalizeExactly(tokenizer: Tokenizer, name: string): void {
  const visit = (node: Normalizer): void => {
    const { type, precompiled_charsmap: table } = node.config;
    if (type === "Precompiled" && table) {
      const charsmap = new Charsmap(Buffer.from(table, "base64"), name);
      node.normalize = (text) => charsmap.normalize(text);
    }
    node.normalizers?.forEach(visit);
  };
  if (tokenizer.normalizer) visit(tokenizer.normalizer as unknown as Normalizer);
}
