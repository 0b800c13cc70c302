export { type ByteEncoderOptions, ByteTextEncoder, byteTokens } from "./byte-encoder.js";
export type { PromptCache, PromptCacheOptions } from "./prompt-cache.js";
export { relativeBucket, T5Encoder, type T5EncoderConfig } from "./t5-encoder.js";
export { findT5Folder, T5Folder } from "./t5-folder.js";
export { T5TextEncoder, type T5TextEncoderOptions } from "./t5-text-encoder.js";
export { T5Tokenizer } from "./t5-tokenizer.js";
export {
  cutNotices,
  type PreparedPrompts,
  paddedLength,
  type TextEmbedding,
  type TextEncoder,
} from "./text-encoder.js";
