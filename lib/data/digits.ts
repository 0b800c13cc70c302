/**
 * The handwritten digits inside the package: 10,000 MNIST images in `assets/digits.bin.gz`.
 *
 * The unpacked file, little-endian, no padding:
 *
 *     8 bytes            the text "LTXDIGIT"
 *     uint16             N, the number of digits
 *     uint8, uint8       height, width
 *     N bytes            one a digit: bits 0-3 the label, bit 7 set when the digit is in the test split
 *     N * height * width the images, rows from the top, 0 background and 255 ink
 *
 * `scripts/pack-digits.mjs` writes it; every sixth digit of a label is a test digit.
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { choice } from "../arguments.js";
import { check } from "../errors.js";

export type Split = "train" | "test";

export interface DigitSet {
  /** Pixels of one side; the images are square. */
  readonly side: number;
  /** `images[label]` holds the digits of one label, each `side * side` bytes. Shared: do not write into them. */
  readonly images: readonly (readonly Uint8Array[])[];
}

const MAGIC = "LTXDIGIT";
const HEADER_BYTES = 12;
const LABEL_MASK = 0x0f;
const TEST_FLAG = 0x80;

// lib/data and dist/data lie equally deep, so one relative path serves sources and the published build.
const ASSET = join(__dirname, "..", "..", "assets", "digits.bin.gz");

let cache: Record<Split, DigitSet> | undefined;

/**
 * The digits of one split by label, read from the package at the first call and kept.
 * @throws LtxError `io` when the package's own file is missing, `file_format` when it is damaged
 */
export function loadDigits(split: Split): DigitSet {
  choice("digits", "split", split, { train: 0, test: 1 });
  cache ??= unpack(readAsset());
  return cache[split];
}

function readAsset(): Uint8Array {
  try {
    return new Uint8Array(gunzipSync(readFileSync(ASSET)));
  } catch (cause) {
    check(false, "io", () => `[digits] cannot read ${ASSET} (${(cause as Error).message}); reinstall ltx-native`);
  }
}

function unpack(bytes: Uint8Array): Record<Split, DigitSet> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const count = bytes.length >= HEADER_BYTES ? view.getUint16(8, true) : 0;
  const height = count > 0 ? view.getUint8(10) : 0;
  const area = height * height;
  check(
    Buffer.from(bytes.subarray(0, MAGIC.length)).toString("latin1") === MAGIC &&
      height === view.getUint8(11) &&
      bytes.length === HEADER_BYTES + count * (1 + area),
    "file_format",
    () => `[digits] ${ASSET} is damaged; reinstall ltx-native`,
  );

  const byLabel = (): Uint8Array[][] => Array.from({ length: 10 }, () => []);
  const images: Record<Split, Uint8Array[][]> = { train: byLabel(), test: byLabel() };
  const firstImage = HEADER_BYTES + count;
  for (let i = 0; i < count; i++) {
    const tag = bytes[HEADER_BYTES + i];
    const image = bytes.subarray(firstImage + i * area, firstImage + (i + 1) * area);
    images[tag & TEST_FLAG ? "test" : "train"][tag & LABEL_MASK].push(image);
  }
  return { train: { side: height, images: images.train }, test: { side: height, images: images.test } };
}
