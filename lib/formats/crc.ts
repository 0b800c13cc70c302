/** The two checksums of 32 bits that file formats use. */
import * as zlib from "node:zlib";

const tableOf = (polynomial: number): Uint32Array =>
  Uint32Array.from({ length: 256 }, (_, byte) => {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ polynomial : crc >>> 1;
    return crc;
  });

function update(table: Uint32Array, bytes: Uint8Array, before: number): number {
  let crc = ~before;
  for (let i = 0; i < bytes.length; i++) crc = table[(crc ^ bytes[i]) & 0xff] ^ (crc >>> 8);
  return ~crc >>> 0;
}

const CASTAGNOLI = tableOf(0x82f63b78);

/** CRC-32C (Castagnoli), the checksum of iSCSI and of TensorFlow's records. */
export const crc32c = (bytes: Uint8Array): number => update(CASTAGNOLI, bytes, 0);

type Checksum = (bytes: Uint8Array, before: number) => number;

/** CRC-32 of zip and PNG; `before` is that of the bytes in front of these. Node has it since 20.15. */
export const crc32: Checksum =
  (zlib as { crc32?: Checksum }).crc32 ??
  ((bytes, before) => {
    ieee ??= tableOf(0xedb88320);
    return update(ieee, bytes, before);
  });

let ieee: Uint32Array | undefined;
