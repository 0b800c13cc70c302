// Packs the digits of the development dependency "mnist" into assets/digits.bin.gz, which lib/data/digits.ts reads
// and describes. Run it again only when that format changes: node scripts/pack-digits.mjs

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";

const SIDE = 28;
const TEST_EVERY = 6;
const TEST_FLAG = 0x80;

const source = join(dirname(createRequire(import.meta.url).resolve("mnist")), "digits");
const labels = [];
const images = [];
for (let label = 0; label < 10; label++) {
  const values = JSON.parse(readFileSync(join(source, `${label}.json`), "utf8")).data;
  if (values.length % (SIDE * SIDE) !== 0)
    throw new Error(`digit ${label}: ${values.length} values are no whole images`);
  // The package stores k/255 rounded to three decimals, so rounding gives the original byte back.
  const bytes = Uint8Array.from(values, (value) => Math.round(value * 255));
  for (let i = 0; i * SIDE * SIDE < bytes.length; i++) {
    labels.push(i % TEST_EVERY === TEST_EVERY - 1 ? label | TEST_FLAG : label);
    images.push(bytes.subarray(i * SIDE * SIDE, (i + 1) * SIDE * SIDE));
  }
}

const header = Buffer.alloc(12);
header.write("LTXDIGIT", 0, "latin1");
header.writeUInt16LE(labels.length, 8);
header.writeUInt8(SIDE, 10);
header.writeUInt8(SIDE, 11);
const packed = gzipSync(Buffer.concat([header, Uint8Array.from(labels), ...images]), { level: 9 });
writeFileSync(new URL("../assets/digits.bin.gz", import.meta.url), packed);
console.log(`assets/digits.bin.gz: ${labels.length} digits, ${packed.length} bytes`);
