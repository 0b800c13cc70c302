/** SentencePiece models (`spiece.model`): the parts that a Unigram tokenizer needs of the protocol buffer. */
import type { Type } from "protobufjs/light.js";
import { check, LtxError } from "../errors.js";

export interface SentencePieceModel {
  /** Text and log-probability of each piece, by id. */
  pieces: { text: string; score: number; type: PieceType }[];
  /** The compiled normalization table; empty for none. */
  charsmap: Uint8Array;
  /** Whether a space is put in front of every text, and whether runs of spaces are made one and those at the ends cut. */
  addDummyPrefix: boolean;
  removeExtraWhitespaces: boolean;
}

export type PieceType = "normal" | "unknown" | "control" | "user_defined" | "unused" | "byte";

const PIECE_TYPES: Record<number, PieceType> = {
  1: "normal",
  2: "unknown",
  3: "control",
  4: "user_defined",
  5: "unused",
  6: "byte",
};
const UNIGRAM = 1;

/** The messages of sentencepiece_model.proto (proto2), as far as they are read. */
const MESSAGES = {
  nested: {
    Piece: {
      fields: {
        piece: { type: "string", id: 1 },
        score: { type: "float", id: 2 },
        type: { type: "int32", id: 3, options: { default: 1 } },
      },
    },
    TrainerSpec: { fields: { modelType: { type: "int32", id: 3, options: { default: UNIGRAM } } } },
    NormalizerSpec: {
      fields: {
        precompiledCharsmap: { type: "bytes", id: 2 },
        addDummyPrefix: { type: "bool", id: 3, options: { default: true } },
        removeExtraWhitespaces: { type: "bool", id: 4, options: { default: true } },
      },
    },
    ModelProto: {
      fields: {
        pieces: { rule: "repeated", type: "Piece", id: 1 },
        trainerSpec: { type: "TrainerSpec", id: 2 },
        normalizerSpec: { type: "NormalizerSpec", id: 3 },
      },
    },
  },
};

let modelProto: Type | undefined;

/** Built at the first use: few programs read such a file, and the library takes long to load. */
function messageType(): Type {
  const { Root } = require("protobufjs/light.js") as typeof import("protobufjs/light.js");
  modelProto ??= Root.fromJSON(MESSAGES).lookupType("ModelProto");
  return modelProto;
}

/** The decoded message: fields that the file leaves out show their defaults. */
interface DecodedModel {
  pieces: { piece: string; score: number; type: number }[];
  trainerSpec: { modelType: number } | null;
  normalizerSpec: {
    precompiledCharsmap: Uint8Array;
    addDummyPrefix: boolean;
    removeExtraWhitespaces: boolean;
  } | null;
}

/**
 * Reads a SentencePiece model of the Unigram kind.
 * @param name what error messages call it
 * @throws LtxError `file_format` when it is damaged, `unavailable` for another kind of model
 */
export function parseSentencePiece(bytes: Uint8Array, name = "spiece.model"): SentencePieceModel {
  let model: DecodedModel;
  try {
    model = messageType().decode(bytes) as unknown as DecodedModel;
  } catch (cause) {
    const reason = (cause as Error).message;
    throw new LtxError("file_format", `[sentencepiece] ${name} is no SentencePiece model, or damaged (${reason})`, {
      cause,
    });
  }
  const { trainerSpec, normalizerSpec } = model;
  check((trainerSpec?.modelType ?? UNIGRAM) === UNIGRAM, "unavailable", () => {
    return `[sentencepiece] ${name} is of model type ${trainerSpec?.modelType}, only Unigram (${UNIGRAM}) is read`;
  });
  const pieces = model.pieces.map(({ piece, score, type }) => ({ text: piece, score, type: PIECE_TYPES[type] }));
  check(pieces.length > 0 && pieces.every(({ type }) => type !== undefined), "file_format", () => {
    return `[sentencepiece] ${name} holds ${pieces.length ? "pieces of unknown type" : "no pieces"}: no SentencePiece model, or damaged`;
  });
  const odd = pieces.find(({ text, score }) => text === "" || !Number.isFinite(score));
  check(!odd, "file_format", () => {
    return `[sentencepiece] ${name} holds the piece ${JSON.stringify(odd?.text.slice(0, 60))} of score ${odd?.score}, expected a text and a finite score: damaged`;
  });
  return {
    pieces,
    charsmap: normalizerSpec?.precompiledCharsmap ?? new Uint8Array(),
    addDummyPrefix: normalizerSpec?.addDummyPrefix ?? true,
    removeExtraWhitespaces: normalizerSpec?.removeExtraWhitespaces ?? true,
  };
}
