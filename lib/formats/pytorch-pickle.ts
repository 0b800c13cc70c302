/**
 * What a PyTorch checkpoint's pickle may build: tensors as views of storages, plain containers, and objects of well-known
 * classes, of which nothing is kept but their class's name. Nothing is ever executed.
 */
import { LtxError } from "../errors.js";
import { DTYPE_BITS, type SafetensorsDtype } from "./dtypes.js";
import { Opaque, PickleGlobal } from "./pickle.js";

/** A run of elements in the file that tensors look into; several may look into one. */
export interface PytorchStorage {
  readonly key: string;
  /** Undefined for element types that cannot be read, as those of quantized tensors. */
  readonly dtype?: SafetensorsDtype;
  /** PyTorch's name of the class. */
  readonly type: string;
  /** Elements. */
  readonly length: number;
}

/** A tensor that cannot be read; that it is there is no fault until it is asked for. */
export class UnreadableTensor extends Opaque {}

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

/** Bytes an element of those storages whose tensors cannot be read. */
const UNREADABLE_STORAGES: Readonly<Record<string, number>> = {
  "torch.ComplexDoubleStorage": 16,
  "torch.QInt8Storage": 1,
  "torch.QUInt8Storage": 1,
  "torch.QInt32Storage": 4,
  "torch.QUInt4x2Storage": 1,
  "torch.QUInt2x4Storage": 1,
};

/** Bytes an element. */
export const storageBytes = ({ dtype, type }: PytorchStorage): number =>
  dtype ? elementBytes(dtype) : UNREADABLE_STORAGES[type];

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

/** Functions whose result is dropped: they make values of no use here. Under Python 2's names too, as protocol 2 has. */
const OPAQUE_FUNCTIONS: ReadonlySet<string> = new Set([
  "torch.device",
  "torch.serialization._get_layout",
  "torch._utils._rebuild_wrapper_subclass",
  "numpy.dtype",
  "numpy.ndarray",
  ...["numpy.core", "numpy._core"].flatMap((core) => [`${core}.multiarray.scalar`, `${core}.multiarray._reconstruct`]),
  "numpy.random.__RandomState_ctor",
  "numpy.random._pickle.__randomstate_ctor",
  "numpy.random._pickle.__generator_ctor",
  "numpy.random._pickle.__bit_generator_ctor",
  "collections.deque",
  ...["datetime", "date", "time", "timedelta", "timezone"].map((name) => `datetime.${name}`),
  "copyreg._reconstructor",
  "copy_reg._reconstructor",
  ...["builtins", "__builtin__"].flatMap((module) =>
    ["complex", "object", "slice", "range", "xrange", "int", "float", "bool", "str", "list", "tuple", "bytes"].map(
      (name) => `${module}.${name}`,
    ),
  ),
]);

/** Functions that build tensors of kinds that cannot be read, and what those are. */
const UNREADABLE_TENSORS: Readonly<Record<string, string>> = {
  "torch._utils._rebuild_qtensor": "a quantized tensor",
  "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
  "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
  "torch._utils._rebuild_nested_tensor": "a nested tensor",
  "torch._utils._rebuild_meta_tensor_no_storage": "a tensor on the meta device, without values,",
};

/** Libraries of which checkpoints carry objects: configurations, dates, paths, states of schedulers. */
const OPAQUE_PACKAGES =
  /^(torch|numpy|argparse|collections|pathlib|datetime|decimal|fractions|uuid|zoneinfo|omegaconf|pytorch_lightning|lightning|lightning_fabric|transformers|diffusers|accelerate|peft|ml_collections|easydict|addict)\./;
/** Classes begin with a capital letter: what is called there makes an object, functions may do anything. */
const isClass = (name: string): boolean =>
  OPAQUE_PACKAGES.test(name) && /^_*[A-Z]\w*$/.test(name.split(".").at(-1) ?? "");

/** The globals and storages of one file. */
export class PytorchPickle {
  readonly storages = new Map<string, PytorchStorage>();
  /** Those that were asked for. */
  private readonly known = new Map<string, PickleGlobal | undefined>();
  private readonly calls: Readonly<Record<string, (args: readonly unknown[]) => unknown>> = {
    "collections.OrderedDict": (args) => this.dict(args),
    "collections.Counter": (args) => this.dict(args),
    "collections.defaultdict": () => new Map(),
    "builtins.dict": (args) => this.dict(args),
    "__builtin__.dict": (args) => this.dict(args),
    "builtins.set": (args) => this.set(args),
    "__builtin__.set": (args) => this.set(args),
    "builtins.frozenset": (args) => this.set(args),
    "__builtin__.frozenset": (args) => this.set(args),
    "builtins.bytearray": (args) => this.encoded(args),
    "__builtin__.bytearray": (args) => this.encoded(args),
    "_codecs.encode": (args) => this.encoded(args),
    "torch.Size": (args) => this.size(args[0]),
    "torch._utils._rebuild_tensor": (args) => this.tensor(args),
    "torch._utils._rebuild_tensor_v2": (args) => this.tensor(args),
    // (..., requires_grad, backward_hooks, dtype, metadata)
    "torch._utils._rebuild_tensor_v3": (args) => this.tensor(args, this.dtype(args[6])),
    "torch._utils._rebuild_parameter": (args) => this.parameter(args),
    "torch._utils._rebuild_parameter_with_state": (args) => this.parameter(args),
    // (function, subclass of Tensor, its arguments, attributes)
    "torch._tensor._rebuild_from_type_v2": ([build, , args]) => this.subclass(build, args),
  };

  /** @param name what messages call the file */
  constructor(private readonly name: string) {}

  /** The globals that exist. */
  get globals(): { get(name: string): PickleGlobal | undefined } {
    return {
      get: (name) => {
        if (!this.known.has(name)) this.known.set(name, this.global(name));
        return this.known.get(name);
      },
    };
  }

  private global(name: string): PickleGlobal | undefined {
    const named = (table: object) => Object.hasOwn(table, name);
    if (named(this.calls)) return new PickleGlobal(name, this.calls[name]);
    if (named(STORAGES) || named(UNREADABLE_STORAGES) || named(DTYPES)) return new PickleGlobal(name);
    if (named(UNREADABLE_TENSORS)) return new PickleGlobal(name, () => new UnreadableTensor(UNREADABLE_TENSORS[name]));
    if (OPAQUE_FUNCTIONS.has(name) || isClass(name)) return new PickleGlobal(name, () => new Opaque(name));
    // Types, layouts and memory formats, which are values: torch.qint8, torch.sparse_coo, torch.complex128.
    return TORCH_VALUES.test(name) ? new PickleGlobal(name) : undefined;
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
    const name = nameOf(type);
    const dtype = Object.hasOwn(STORAGES, name) ? STORAGES[name] : undefined;
    if (!dtype && !Object.hasOwn(UNREADABLE_STORAGES, name)) return this.fail(`the unknown storage class ${name}`);
    const known = this.storages.get(key);
    if (known) {
      if (known.type !== name || known.length !== length) this.fail(`storage ${show(key)} in two ways`);
      return known;
    }
    const storage = { key, dtype, type: name, length };
    this.storages.set(key, storage);
    return storage;
  }

  private fail(found: string): never {
    throw new LtxError(
      "file_format",
      `[pt] ${this.name}: found ${found}; the file is damaged or of an unknown version`,
    );
  }

  private dict([items = []]: readonly unknown[]): Map<unknown, unknown> {
    if (items instanceof Map) return new Map(items);
    const pairs = Array.isArray(items) && items.every((item) => Array.isArray(item) && item.length === 2);
    return pairs ? new Map(items as [unknown, unknown][]) : this.fail("a dict made from something other than pairs");
  }

  private set([items = []]: readonly unknown[]): Set<unknown> {
    return Array.isArray(items) ? new Set(items) : this.fail("a set made from something other than a list");
  }

  /** Bytes: as such, or as a text of one character a byte, which is how protocol 2 writes them. */
  private encoded([value = new Uint8Array(), encoding = "latin1"]: readonly unknown[]): Uint8Array {
    if (value instanceof Uint8Array) return value;
    if (typeof value !== "string" || typeof encoding !== "string") return this.fail("bytes made from something other");
    return Buffer.from(value, /^latin[-_]?1$/.test(encoding) ? "latin1" : "utf8");
  }

  private subclass(build: unknown, args: unknown): unknown {
    if (!(build instanceof PickleGlobal) || !build.call || !Array.isArray(args)) {
      return this.fail("a tensor's subclass that is not built like a tensor");
    }
    return build.call(args);
  }

  private size(value: unknown): readonly number[] {
    const sizes = Array.isArray(value) && value.length <= MAX_DIMS && value.every(isCount);
    return sizes ? value : this.fail("a shape or strides that are no whole numbers from 0");
  }

  private dtype(value: unknown): SafetensorsDtype | UnreadableTensor {
    const name = nameOf(value);
    if (Object.hasOwn(DTYPES, name)) return DTYPES[name];
    return TORCH_VALUES.test(name) ? unreadable(name) : this.fail(`the unknown element type ${name}`);
  }

  private tensor(
    args: readonly unknown[],
    dtype?: SafetensorsDtype | UnreadableTensor,
  ): PytorchTensor | UnreadableTensor {
    const [storage, offset] = args;
    const key = (storage as PytorchStorage | null)?.key;
    if (key === undefined || this.storages.get(key) !== storage) return this.fail("a tensor without storage");
    const { dtype: stored, type: className, length } = storage as PytorchStorage;
    if (!stored) return unreadable(className);
    if (dtype instanceof UnreadableTensor) return dtype;
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

  private parameter([tensor]: readonly unknown[]): PytorchTensor | UnreadableTensor {
    const fits = tensor instanceof PytorchTensor || tensor instanceof UnreadableTensor;
    return fits ? tensor : this.fail("a parameter without tensor");
  }
}

const TORCH_VALUES = /^torch\.(q?u?int\d+(x\d+)?|float\w+|complex\d+|bits\w+|strided|sparse_\w+|\w+_format|_mkldnn)$/;
const unreadable = (type: string) => new UnreadableTensor(`a tensor of type ${type.replace(/^torch\.|Storage$/g, "")}`);

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

const nameOf = (value: unknown): string => (value instanceof PickleGlobal ? value.name : "(none)");

export const show = (value: unknown): string =>
  typeof value === "string" ? JSON.stringify(value.slice(0, 80)) : `a ${typeof value}`;
