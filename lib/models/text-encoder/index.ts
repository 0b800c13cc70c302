export { type ByteEncoderOptions, ByteTextEncoder, byteTokens } from "./byte-encoder.js";
export type { TextEmbedding, TextEncoder } from "./text-encoder.js";
