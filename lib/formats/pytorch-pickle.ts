/** What a PyTorch checkpoint's pickle may build: tensors as views of storages, besides plain containers. */
import { check, LtxError } from "../errors.js";
import { DTYPE_BITS, type SafetensorsDtype } from "./dtypes.js";
import type { PickleGlobal } from "./pickle.js";

/** A run of elements in the file that tensors look into; several may look into one. */
export interface PytorchStorage {
  readonly key: string;
  readonly dtype: SafetensorsDtype;
  /** Elements. */
  readonly length: number;
}

/** Element (i, j, ...) lies at `offset + i * strides[0] + j * strides[1] + ...` of its storage, counted in `dtype`. */
export class PytorchTensor {
  constructor(
    readonly storage: PytorchStorage,
    readonly dtype: SafetensorsDtype,
    readonly offset: number,
    readonly shape: readonly number[],
    readonly strides: readonly number[],
  ) {}

  get size(): number {
    return this.shape.reduce((n, d) => n * d, 1);
  }

  get byteLength(): number {
    return this.size * elementBytes(this.dtype);
  }

  /** The elements of the storage that are read, first and one past the last. */
  get span(): [begin: number, end: number] {
    if (this.size === 0) return [this.offset, this.offset];
    const last = this.shape.reduce((at, d, i) => at + (d - 1) * this.strides[i], this.offset);
    return [this.offset, last + 1];
  }

  /** Whether the elements lie in the storage one after the other in row-major order. */
  get contiguous(): boolean {
    let expected = 1;
    for (let i = this.shape.length - 1; i >= 0; i--) {
      if (this.shape[i] === 1) continue;
      if (this.strides[i] !== expected) return false;
      expected *= this.shape[i];
    }
    return true;
  }
}

export const elementBytes = (dtype: SafetensorsDtype): number => DTYPE_BITS[dtype] / 8;

/** PyTorch's storage classes; an untyped one counts bytes. */
const STORAGES: Readonly<Record<string, SafetensorsDtype>> = {
  "torch.FloatStorage": "F32",
  "torch.DoubleStorage": "F64",
  "torch.HalfStorage": "F16",
  "torch.BFloat16Storage": "BF16",
  "torch.ByteStorage": "U8",
  "torch.CharStorage": "I8",
  "torch.ShortStorage": "I16",
  "torch.IntStorage": "I32",
  "torch.LongStorage": "I64",
  "torch.BoolStorage": "BOOL",
  "torch.ComplexFloatStorage": "C64",
  "torch.storage.UntypedStorage": "U8",
};

/** Element types that are named beside an untyped storage. */
const DTYPES: Readonly<Record<string, SafetensorsDtype>> = {
  "torch.float32": "F32",
  "torch.float64": "F64",
  "torch.float16": "F16",
  "torch.bfloat16": "BF16",
  "torch.uint8": "U8",
  "torch.int8": "I8",
  "torch.int16": "I16",
  "torch.int32": "I32",
  "torch.int64": "I64",
  "torch.uint16": "U16",
  "torch.uint32": "U32",
  "torch.uint64": "U64",
  "torch.bool": "BOOL",
  "torch.complex64": "C64",
  "torch.float8_e4m3fn": "F8_E4M3",
  "torch.float8_e5m2": "F8_E5M2",
};

/** PyTorch itself stops at 64. */
const MAX_DIMS = 64;

/** The globals and storages of one file. */
export class PytorchPickle {
  readonly storages = new Map<string, PytorchStorage>();
  readonly globals: ReadonlyMap<string, PickleGlobal>;

  /** @param name what messages call the file */
  constructor(private readonly name: string) {
    const calls: Record<string, (args: readonly unknown[]) => unknown> = {
      "collections.OrderedDict": (args) => this.orderedDict(args),
      "torch.Size": (args) => this.size(args[0]),
      "torch._utils._rebuild_tensor": (args) => this.tensor(args),
      "torch._utils._rebuild_tensor_v2": (args) => this.tensor(args),
      // (..., requires_grad, backward_hooks, dtype, metadata)
      "torch._utils._rebuild_tensor_v3": (args) => this.tensor(args, this.dtype(args[6])),
      "torch._utils._rebuild_parameter": (args) => this.parameter(args),
    };
    const values = [...Object.keys(STORAGES), ...Object.keys(DTYPES)].map((name): PickleGlobal => ({ name }));
    const callable = Object.entries(calls).map(([name, call]): PickleGlobal => ({ name, call }));
    this.globals = new Map([...values, ...callable].map((global) => [global.name, global]));
  }

  /**
   * The storage of a persistent id ("storage", class, key, device, length), in the older format with a sixth item that
   * is None.
   */
  persistent(id: unknown): PytorchStorage {
    const [kind, type, key, , length, view] = Array.isArray(id) ? id : [];
    if (kind !== "storage" || typeof key !== "string" || !isCount(length)) return this.fail("no storage's id");
    // Storages that were views of others were written before PyTorch 0.4 only.
    if (view !== undefined && view !== null) return this.fail("a storage that is a view of another");
    const dtype = Object.hasOwn(STORAGES, nameOf(type)) ? STORAGES[nameOf(type)] : undefined;
    if (!dtype) return this.fail(`the unknown storage class ${nameOf(type)}`);
    const known = this.storages.get(key);
    if (known) {
      if (known.dtype !== dtype || known.length !== length) this.fail(`storage ${show(key)} in two ways`);
      return known;
    }
    const storage = { key, dtype, length };
    this.storages.set(key, storage);
    return storage;
  }

  private fail(found: string): never {
    throw new LtxError(
      "file_format",
      `[pt] ${this.name}: found ${found}; the file is damaged or of an unknown version`,
    );
  }

  private orderedDict([items = []]: readonly unknown[]): Map<unknown, unknown> {
    const pairs = Array.isArray(items) && items.every((item) => Array.isArray(item) && item.length === 2);
    return pairs ? new Map(items as [unknown, unknown][]) : this.fail("an OrderedDict of what are no pairs");
  }

  private size(value: unknown): readonly number[] {
    const sizes = Array.isArray(value) && value.length <= MAX_DIMS && value.every(isCount);
    return sizes ? value : this.fail("a shape or strides that are no whole numbers from 0");
  }

  private dtype(value: unknown): SafetensorsDtype {
    const name = nameOf(value);
    return Object.hasOwn(DTYPES, name) ? DTYPES[name] : this.fail(`the unknown element type ${name}`);
  }

  private tensor(args: readonly unknown[], dtype?: SafetensorsDtype): PytorchTensor {
    const [storage, offset] = args;
    const key = (storage as PytorchStorage | null)?.key;
    if (key === undefined || this.storages.get(key) !== storage) return this.fail("a tensor without storage");
    const { dtype: stored, length } = storage as PytorchStorage;
    const type = dtype ?? stored;
    const shape = this.size(args[2]);
    const strides = this.size(args[3]);
    if (!isCount(offset) || shape.length !== strides.length) return this.fail("a tensor of impossible layout");
    const tensor = new PytorchTensor(storage as PytorchStorage, type, offset, shape, strides);
    // Checked at each factor: a later 0 must not hide an overflow.
    let size = 1;
    for (const d of shape) {
      size *= d;
      if (!isCount(size)) this.fail(`the impossible shape [${shape}]`);
    }
    const end = tensor.span[1] * elementBytes(type);
    if (!isCount(end) || end > length * elementBytes(stored)) {
      this.fail(`a tensor [${shape}] that reaches past the end of storage ${show(key)}`);
    }
    return tensor;
  }

  private parameter([tensor]: readonly unknown[]): PytorchTensor {
    return tensor instanceof PytorchTensor ? tensor : this.fail("a parameter without tensor");
  }
}

/** Tensors may share their storage; a file whose tensors repeat it more often than this is made to fill the memory. */
const MAX_SHARING = 16;
const ALWAYS_ALLOWED_BYTES = 64 * 2 ** 20;

/**
 * The tensors of a checkpoint by name: of its entry `model_state_dict` (or `state_dict`) if it has one, else of the
 * object itself. `module.`, which distributed training puts before every key, is taken away.
 * @param path what messages call the file
 * @throws LtxError `checkpoint` when there are none, `file_format` when their sizes are absurd
 */
export function stateDictOf(root: unknown, path: string): Map<string, PytorchTensor> {
  const entries = root instanceof Map ? root : new Map();
  const nested = ["model_state_dict", "state_dict"]
    .map((key) => entries.get(key))
    .find((value) => value instanceof Map);
  const found = [...((nested ?? entries) as Map<unknown, unknown>)].filter(
    (entry): entry is [string, PytorchTensor] => typeof entry[0] === "string" && entry[1] instanceof PytorchTensor,
  );
  check(found.length > 0, "checkpoint", () => {
    const keys = [...entries.keys()].slice(0, 5).map((key) => show(key));
    return `[pt] ${path} holds no state dict: expected model_state_dict or tensors by name, found ${keys.join(", ") || "no dict"}`;
  });
  const storages = new Set(found.map(([, { storage }]) => storage));
  const stored = [...storages].reduce((n, { dtype, length }) => n + length * elementBytes(dtype), 0);
  const bytes = found.reduce((n, [, tensor]) => n + tensor.byteLength, 0);
  check(bytes <= MAX_SHARING * stored + ALWAYS_ALLOWED_BYTES, "file_format", () => {
    return `[pt] ${path}: its tensors unfold to ${bytes} bytes from ${stored} that are stored; the file is damaged or made to do harm`;
  });
  const wrapped = found.every(([name]) => name.startsWith("module."));
  return new Map(wrapped ? found.map(([name, tensor]) => [name.slice("module.".length), tensor]) : found);
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

const nameOf = (value: unknown): string => {
  const name = (value as PickleGlobal | null | undefined)?.name;
  return typeof name === "string" ? name : "(none)";
};

const show = (value: unknown): string =>
  typeof value === "string" ? JSON.stringify(value.slice(0, 80)) : `a ${typeof value}`;
