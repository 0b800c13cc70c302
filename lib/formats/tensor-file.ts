/** Files of named tensors, whatever their format. */
import { check } from "../errors.js";
import { toFloat32 } from "./dtypes.js";
import { readPytorch } from "./pytorch.js";
import { openRandomAccess } from "./random-access.js";
import { readSafetensors, type SafetensorsDtype } from "./safetensors.js";
import { stateDictOf } from "./state-dict.js";

export interface TensorEntry {
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly byteLength: number;
}

export interface FilePlace {
  readonly path: string;
  /** Bytes from the start of the file. */
  readonly offset: number;
}

/** An open file; the tensors are read when asked for. */
export interface TensorFile {
  readonly metadata: Readonly<Record<string, string>>;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** The bytes of one tensor, little-endian and row-major, in a buffer of their own. @throws LtxError */
  read(name: string): Promise<Uint8Array>;
  /** The elements of one tensor as float32. @throws LtxError `dtype_mismatch` for types without such a reading */
  readF32(name: string): Promise<Float32Array>;
  /** Where on disk the bytes of one tensor lie as `read` gives them, if they do. @throws LtxError */
  locate?(name: string): FilePlace | undefined;
  close(): Promise<void>;
}

/**
 * Whether a file with these first bytes is one of PyTorch's: a zip archive's signature, or a pickle of protocol 2 to 5.
 * A safetensors file may by chance have a header of a length that looks so, but its ninth byte is always "{".
 */
function isPytorch(start: Uint8Array): boolean {
  const zip = Buffer.from(start.subarray(0, 4)).toString("latin1") === "PK\x03\x04";
  const pickle = start[0] === 0x80 && start[1] >= 2 && start[1] <= 5;
  return (zip || pickle) && start[8] !== 0x7b;
}

/** How the text begins that Git leaves in place of a large file; as a safetensors header's length it would be absurd. */
const LFS_POINTER = "version h";

/**
 * Opens a safetensors file or a state dict that PyTorch saved (see {@link stateDictOf}), told apart by their contents.
 * @throws LtxError `checkpoint`, `file_format`, `io`
 */
export async function openTensorFile(path: string): Promise<TensorFile> {
  const file = await openRandomAccess(path, "checkpoint");
  const start = await file.read(0, Math.min(9, file.size)).finally(file.close);
  check(Buffer.from(start).toString("latin1") !== LFS_POINTER, "file_format", () => {
    return `[checkpoint] ${path} is a pointer of Git LFS, not the file itself: fetch that with "git lfs pull"`;
  });
  return isPytorch(start) ? openStateDict(path) : readSafetensors(path);
}

async function openStateDict(path: string): Promise<TensorFile> {
  const file = await readPytorch(path);
  try {
    const tensors = stateDictOf(file.root, path);
    const find = (name: string) => {
      const tensor = tensors.get(name);
      check(tensor, "invalid_argument", () => `[pt] ${path} has no tensor "${name}"`);
      return tensor;
    };
    return {
      metadata: {},
      tensors,
      read: (name) => file.read(find(name)),
      async readF32(name) {
        const tensor = find(name);
        const values = toFloat32(await file.read(tensor), tensor.dtype);
        const { dtype } = tensor;
        check(
          values,
          "dtype_mismatch",
          () => `[pt] ${path}: tensor "${name}" of dtype ${dtype} has no float32 reading`,
        );
        return values;
      },
      close: file.close,
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}
