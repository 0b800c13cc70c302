/** Files of named tensors, whatever their format. */
import { check, LtxError } from "../errors.js";
import { fileKind, KIND_BYTES, mistaken } from "../file-kind.js";
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
  /** Of the open file: another may have its path by now. */
  readonly descriptor: number;
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

const EXPECTED = "weights: a safetensors file or a PyTorch checkpoint";

/**
 * Opens a safetensors file or a state dict that PyTorch saved (see {@link stateDictOf}), told apart by their contents.
 * @throws LtxError `checkpoint`, `file_format` naming what the file is when it is something else, `io`
 */
export async function openTensorFile(path: string): Promise<TensorFile> {
  const file = await openRandomAccess(path, "checkpoint");
  const start = await file.read(0, Math.min(KIND_BYTES, file.size)).finally(file.close);
  const kind = fileKind(start, path);
  if (kind?.type === "safetensors") return readSafetensors(path);
  if (kind?.type === "zip" || kind?.type === "pickle") return openStateDict(path);
  const bytes = Buffer.from(start.subarray(0, 9)).toString("hex").replace(/..\B/g, "$& ");
  const found = kind ?? {
    what: `a file that begins with ${bytes}`,
    remedy: "it is damaged or of a kind that is not known",
  };
  throw new LtxError("file_format", `[checkpoint] ${mistaken(path, { type: "other", ...found }, EXPECTED)}`);
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
