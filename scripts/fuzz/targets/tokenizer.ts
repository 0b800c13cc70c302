/** T5's tokenizers and folders. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { T5Folder } from "../../../lib/models/text-encoder/t5-folder.js";
import { T5Tokenizer } from "../../../lib/models/text-encoder/t5-tokenizer.js";
import {
  tinyPieces,
  tinySentencePiece,
  tinyT5Config,
  tinyTokenizerJson,
  writeTinyT5,
} from "../../../test/support/tiny-t5.js";
import { jsonText, mutateBytes, mutateJson } from "../mutate.js";
import type { Random } from "../random.js";
import { must, type Target } from "../target.js";

const TEXTS = [
  "",
  "three and seven",
  "  two   one ",
  "é\u0301ﬁ",
  "\ud800",
  "<pad></s>",
  "zero".repeat(50),
  "toString __proto__",
  "▁",
  "\0",
  "日本語",
  "</s>",
];

function check(random: Random, tokenizer: T5Tokenizer, most: number): void {
  for (const text of [random.pick(TEXTS), "constructor"]) {
    const ids = tokenizer.encode(text, random.pick([1, 5, 256]));
    must(ids.length >= 1, () => `no ids of ${JSON.stringify(text)}`);
    for (const id of ids)
      must(
        Number.isInteger(id) && id >= 0 && id < most,
        () => `the id ${JSON.stringify(id)} of ${JSON.stringify(text)}`,
      );
  }
}

const WORDS = [
  "Unigram",
  "BPE",
  "Precompiled",
  "Replace",
  "Metaspace",
  "Sequence",
  "Strip",
  "Lowercase",
  "NFKC",
  "Prepend",
  "always",
  "</s>",
  "<pad>",
  "<unk>",
  "Regex",
  "String",
  "(",
  "(a+)+$",
  "[",
  "toString",
];

export const tokenizerJson: Target = {
  name: "tokenizer.json",
  about: "tokenizer.json files, and the ids that they give",
  weight: 20,
  async setup() {
    const seed = tinyTokenizerJson();
    return async (random) => {
      const text = jsonText(random, mutateJson(random, seed, WORDS));
      const tokenizer = T5Tokenizer.fromJson(
        random.chance(0.9) ? text : mutateBytes(random, Buffer.from(text)).toString(),
      );
      check(random, tokenizer, 2 ** 31);
    };
  },
};

export const sentencePiece: Target = {
  name: "spiece.model",
  about: "SentencePiece models, and the ids that they give",
  weight: 20,
  async setup() {
    // A trie of one unit and a text behind it, which is damaged as often as not.
    const charsmap = Buffer.concat([Buffer.from([4, 0, 0, 0, 0, 0, 0, 0]), Buffer.from("a\0b\0")]);
    const seeds = [tinySentencePiece(), tinySentencePiece({ charsmap }), tinySentencePiece({ modelType: 2 })].map(
      (bytes) => Buffer.from(bytes),
    );
    return async (random) => {
      const bytes = random.chance(0.2)
        ? Buffer.from(tinySentencePiece({ charsmap: mutateBytes(random, charsmap) }))
        : mutateBytes(random, random.pick(seeds), seeds);
      check(random, T5Tokenizer.fromSentencePiece(bytes), bytes.length + 200);
    };
  },
};

export const t5Folder: Target = {
  name: "t5-folder",
  about: "folders of a T5: config.json beside tokenizer and weights",
  weight: 5,
  async setup(folder) {
    const place = await writeTinyT5(join(folder, "t5"));
    return async (random) => {
      const config = { ...tinyT5Config, d_model: 16 };
      writeFileSync(
        join(place, "config.json"),
        jsonText(random, random.chance(0.8) ? mutateJson(random, config, ["t5", "gated-gelu", "relu"]) : config),
      );
      rmSync(join(place, "spiece.model"), { force: true });
      const json = tinyTokenizerJson();
      writeFileSync(
        join(place, "tokenizer.json"),
        random.chance(0.7) ? JSON.stringify(json) : jsonText(random, mutateJson(random, json, WORDS)),
      );
      if (random.chance(0.1)) {
        rmSync(join(place, "tokenizer.json"));
        writeFileSync(join(place, "spiece.model"), mutateBytes(random, Buffer.from(tinySentencePiece())));
      }
      const opened = await T5Folder.open(place);
      check(random, opened.tokenizer, Math.max(opened.config.vocab_size, tinyPieces.length));
    };
  },
};
