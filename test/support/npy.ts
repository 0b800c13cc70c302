/** Writes `.npy` bytes for the tests. */
import { bytesOf } from "./pytorch.js";

/** A `.npy` file of version 1.0 of the given description; `descr` like "|u1" or "<f4". */
export function npyBytes(descr: string, shape: readonly number[], data: ArrayBufferView, fortran = false): Buffer {
  const tuple = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
  const order = fortran ? "True" : "False";
  return npyFile(`{'descr': '${descr}', 'fortran_order': ${order}, 'shape': ${tuple}, }`, bytesOf(data));
}

/** A file with any header text, as NumPy pads it: the data begin at a multiple of 64. */
export function npyFile(header: string, data: Uint8Array, version = 1): Buffer {
  const prefix = version === 1 ? 10 : 12;
  const text = Buffer.from(
    `${header.padEnd(Math.ceil((prefix + header.length + 1) / 64) * 64 - prefix - 1)}\n`,
    "latin1",
  );
  const start = Buffer.alloc(prefix);
  start.write("\x93NUMPY", "latin1");
  start[6] = version;
  if (version === 1) start.writeUInt16LE(text.length, 8);
  else start.writeUInt32LE(text.length, 8);
  return Buffer.concat([start, text, Buffer.from(data)]);
}
