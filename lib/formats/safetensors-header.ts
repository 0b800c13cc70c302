/**
 * The header of a safetensors file: a uint64 length N, then N bytes of JSON that name every tensor with its type, shape
 * and place in the rest of the file. Format: https://github.com/huggingface/safetensors#format
 */

import { check, LtxError } from "../errors.js";
import { DTYPE_BITS, isDtype, type SafetensorsDtype } from "./dtypes.js";
import { parseStrictJson } from "./strict-json.js";

/** The bound of the format itself, against files that ask for absurd allocations. */
export const MAX_HEADER_BYTES = 100_000_000;
export const LENGTH_BYTES = 8;
export const METADATA_KEY = "__metadata__";

export interface SafetensorsEntry {
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  /** Where the tensor's bytes begin, counted from the start of the file. */
  readonly offset: number;
  readonly byteLength: number;
}

export interface SafetensorsHeader {
  /** Free text by key; empty when the file has none. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Tensors by name, in the order in which their bytes lie in the file. */
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>;
}

type Fail = (reason: string) => never;

function failing(name: string): Fail {
  return (reason) => {
    throw new LtxError(
      "file_format",
      `[safetensors] ${name}: ${reason}; the file is damaged or not a safetensors file`,
    );
  };
}

/**
 * Length of the JSON header, from the first 8 bytes of a file of `fileSize` bytes.
 * @param name what messages call the file
 * @throws LtxError `file_format`
 */
export function headerLength(bytes: Uint8Array, fileSize: number, name = "buffer"): number {
  const fail = failing(name);
  if (fileSize < LENGTH_BYTES || bytes.byteLength < LENGTH_BYTES) {
    fail(`${Math.min(fileSize, bytes.byteLength)} bytes are too few for the ${LENGTH_BYTES} of the header length`);
  }
  const length = new DataView(bytes.buffer, bytes.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
  if (length > MAX_HEADER_BYTES) fail(`header length ${length} is over the limit of ${MAX_HEADER_BYTES} bytes`);
  if (LENGTH_BYTES + Number(length) > fileSize)
    fail(`header length ${length} reaches past the ${fileSize} bytes there are, as in a download that is not complete`);
  return Number(length);
}

/**
 * Reads and checks the header at the start of `bytes`, against a file of `fileSize` bytes. Every tensor must have a known
 * type and as many bytes as its shape asks for, and the tensors must cover the data exactly: no overlap, hole or rest.
 * @param bytes the file's beginning, at least to the end of the header
 * @param name what messages call the file
 * @throws LtxError `file_format`
 */
export function parseSafetensorsHeader(
  bytes: Uint8Array,
  fileSize = bytes.byteLength,
  name = "buffer",
): SafetensorsHeader {
  const fail = failing(name);
  const length = headerLength(bytes, fileSize, name);
  const dataStart = LENGTH_BYTES + length;
  check(
    bytes.byteLength >= dataStart,
    "invalid_argument",
    () => `[safetensors] ${name}: the header takes ${dataStart} bytes, only ${bytes.byteLength} were given`,
  );
  const header = parseObject(bytes.subarray(LENGTH_BYTES, dataStart), fail);

  const { [METADATA_KEY]: rawMetadata, ...rawTensors } = header;
  const metadata = rawMetadata === undefined ? {} : readMetadata(rawMetadata, fail);
  const entries = Object.entries(rawTensors).map(([key, value]) => readEntry(key, value, fail));
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end);

  const tensors = new Map<string, SafetensorsEntry>();
  let covered = 0;
  for (const { key, dtype, shape, begin, end } of entries) {
    if (begin !== covered) {
      const what = begin < covered ? "overlaps the tensor before it" : "leaves a hole before it";
      fail(`tensor ${show(key)} begins at data byte ${begin} and ${what}, which ends at ${covered}`);
    }
    tensors.set(key, { dtype, shape, offset: dataStart + begin, byteLength: end - begin });
    covered = end;
  }
  const data = fileSize - dataStart;
  if (covered !== data) {
    const found = `the tensors cover ${covered} bytes of data, the file has ${data}`;
    if (covered < data) fail(found);
    const remedy = "the file is damaged or not complete: download or copy it again";
    throw new LtxError("file_format", `[safetensors] ${name}: ${found}; ${remedy}`);
  }
  return { metadata, tensors };
}

function parseObject(bytes: Uint8Array, fail: Fail): Record<string, unknown> {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return fail("the header is not UTF-8");
  }
  if (!text.startsWith("{")) fail(`the header must begin with "{", found ${show(text.slice(0, 1))}`);
  try {
    return parseStrictJson(text) as Record<string, unknown>;
  } catch (error) {
    return fail(`the header is no valid JSON (${(error as Error).message.slice(0, 200)})`);
  }
}

/** A value from the file for a message: short, whatever it is. */
function show(value: unknown): string {
  let text: string;
  try {
    text = JSON.stringify(value) ?? "nothing";
  } catch {
    return "a value nested too deep";
  }
  return text.length > 100 ? `${text.slice(0, 100)}...` : text;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function readMetadata(value: unknown, fail: Fail): Record<string, string> {
  if (!isObject(value)) return fail(`${METADATA_KEY} must be an object of strings`);
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== "string") fail(`${METADATA_KEY} ${show(key)} must be a string, found ${show(text)}`);
  }
  return value as Record<string, string>;
}

interface RawEntry {
  key: string;
  dtype: SafetensorsDtype;
  shape: number[];
  begin: number;
  end: number;
}

function readEntry(key: string, value: unknown, fail: Fail): RawEntry {
  if (!isObject(value)) return fail(`tensor ${show(key)} must be an object`);
  const { dtype, shape, data_offsets: offsets } = value;
  if (!isDtype(dtype)) return fail(`tensor ${show(key)} has unknown dtype ${show(dtype)}`);
  if (!isCounts(shape)) return fail(`tensor ${show(key)} has impossible shape ${show(shape)}`);
  if (!isCounts(offsets) || offsets.length !== 2) {
    return fail(`tensor ${show(key)} has impossible data_offsets ${show(offsets)}`);
  }
  const [begin, end] = offsets;
  if (end < begin) fail(`tensor ${show(key)} ends at data byte ${end}, before it begins at ${begin}`);
  const expected = tensorBytes(dtype, shape);
  if (expected === undefined)
    return fail(`tensor ${show(key)} of shape ${show(shape)} is too large or ends inside a byte`);
  if (expected !== end - begin) {
    fail(`tensor ${show(key)} of dtype ${dtype} and shape ${show(shape)} takes ${expected} bytes, not ${end - begin}`);
  }
  return { key, dtype, shape, begin, end };
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0);
}

/** Bytes that a tensor takes; undefined when that is no exact whole number below 2^53. */
export function tensorBytes(dtype: SafetensorsDtype, shape: readonly number[]): number | undefined {
  let bits: number = DTYPE_BITS[dtype];
  for (const size of shape) {
    bits *= size;
    // Checked at each factor: a later 0 must not hide an overflow.
    if (!Number.isSafeInteger(bits)) return undefined;
  }
  return bits % 8 === 0 ? bits / 8 : undefined;
}
