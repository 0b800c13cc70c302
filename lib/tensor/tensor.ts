import { callable, checkOptions, checkShape, choice, integer, show } from "../arguments.js";
import { check, LtxError } from "../errors.js";
import type { DType, MemoryGroup } from "../native.js";
import * as native from "../native.js";
import type { Node } from "./autograd.js";
import { Device } from "./device.js";
import { device as openDevice } from "./open-device.js";
import { adopt } from "./scope.js";

export type { DType, MemoryGroup };
export type TypedArray = Float32Array | Int32Array | Uint8Array | Uint16Array;
export type Shape = readonly number[];

export interface TensorOptions {
  dtype?: DType;
  device?: Device;
  /** What the memory is for, in reports. */
  group?: MemoryGroup;
}

export function sizeOf(shape: Shape): number {
  checkShape("sizeOf", shape);
  return product(shape);
}

const product = (shape: Shape): number => {
  let n = 1;
  for (const d of shape) n *= d;
  return n;
};

let allocationGroup: MemoryGroup = "activations";

/** Counts what `body` allocates as `group`, unless an allocation names its own. */
export function withMemoryGroup<T>(group: MemoryGroup, body: () => T): T {
  choice("memory", "group", group, native.memoryGroupIndex);
  callable("memory", "body", body);
  const before = allocationGroup;
  allocationGroup = group;
  try {
    return body();
  } finally {
    allocationGroup = before;
  }
}

/**
 * A contiguous row-major array on a device. Memory is owned, not collected: it is freed when the handle is disposed
 * (by {@link dispose}, or by the {@link scope} it was made in) and the tape needs it no longer.
 */
export class Tensor {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly device: Device;
  readonly size: number;
  /** Whether {@link backward} leaves a gradient here. Only leaves may set it. */
  requiresGrad = false;
  /** The gradient, after backward, of a leaf that requires one. */
  grad: Tensor | null = null;
  /** @internal The tape's record of the op that made this tensor. */
  gradFn: Node | null = null;
  /** @internal Whether the user's handle is still valid. */
  alive = true;
  /** @internal Whether another tensor has the same memory. */
  isView = false;
  private holds = 0;
  private id: number;

  /** @internal Use {@link Tensor.from}, {@link empty} or an op. */
  constructor(id: number, shape: Shape, dtype: DType, device: Device) {
    this.id = id;
    this.shape = shape;
    this.dtype = dtype;
    this.device = device;
    this.size = product(shape);
    adopt(this);
  }

  /**
   * Copies `data` to the device. Uint16Array holds bf16 bits; other arrays are converted to `dtype` where they differ.
   * @throws {LtxError} `invalid_argument` for what is no array of numbers, and where an integer dtype can't hold a value.
   */
  static from(data: TypedArray | readonly number[], shape: Shape, options: TensorOptions = {}): Tensor {
    checkShape("tensor", shape);
    checkValues("tensor", data);
    checkOptions("tensor", options, TENSOR_OPTIONS);
    const dtype = options.dtype ?? ownDtype(data);
    choice("tensor", "dtype", dtype, native.dtypeIndex);
    check(data.length === sizeOf(shape), "shape_mismatch", () => {
      return `[tensor] shape [${shape}] holds ${sizeOf(shape)} values, got ${data.length}`;
    });
    const values = withRoom("tensor", 4 * data.length, () => convert(data, dtype));
    const result = empty(shape, { ...options, dtype });
    try {
      native.upload(result.handle, values);
    } catch (error) {
      result.dispose();
      throw error;
    }
    return result;
  }

  /** @internal The native number; throws when the tensor was disposed. */
  get handle(): number {
    check(this.alive || this.holds > 0, "disposed", () => `tensor [${this.shape}] was used after it was disposed`);
    return this.id;
  }

  get dims(): number {
    return this.shape.length;
  }

  /** Whether ops on this tensor are recorded. */
  get tracked(): boolean {
    return this.requiresGrad || this.gradFn !== null;
  }

  /** @internal Keeps the memory past the handle's life, for the tape. */
  hold(): this {
    this.holds++;
    return this;
  }

  /** @internal */
  unhold(): void {
    this.holds--;
    this.freeIfUnused();
  }

  /** Ends the handle's life. Harmless when repeated. */
  dispose(): void {
    if (!this.alive) return;
    this.alive = false;
    const node = this.gradFn;
    this.gradFn = null;
    this.freeIfUnused();
    node?.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  private freeIfUnused(): void {
    if (this.alive || this.holds > 0 || this.id === 0) return;
    native.release(this.id);
    this.id = 0;
    this.grad?.dispose();
  }

  /**
   * Resolves when the values have been made, without reading them.
   * @throws {LtxError} as {@link read}
   */
  ready(): Promise<void> {
    return native.ready(this.handle);
  }

  /**
   * The values as f32, i32 or u8 (bf16 is widened to f32), once all that was queued before has run.
   * @throws {LtxError} that of the op that failed, where the values depend on one that did; `out_of_memory` when the
   *   host has no room for them
   */
  async read(): Promise<Float32Array | Int32Array | Uint8Array> {
    const buffer = await native.read(this.handle);
    switch (this.dtype) {
      case "f32":
        return new Float32Array(buffer);
      case "i32":
        return new Int32Array(buffer);
      case "u8":
        return new Uint8Array(buffer);
      case "bf16":
        return widen(new Uint16Array(buffer));
    }
  }

  /** The raw bytes in the tensor's own dtype. */
  async readBytes(): Promise<Uint8Array> {
    return new Uint8Array(await native.read(this.handle));
  }

  /** The single value of a tensor of size 1. */
  async item(): Promise<number> {
    check(this.size === 1, "shape_mismatch", () => `[item] needs a tensor of one element, got shape [${this.shape}]`);
    return (await this.read())[0];
  }

  /** Overwrites the values in place, e.g. of a parameter that is loaded. */
  write(data: TypedArray | readonly number[]): void {
    checkValues("write", data);
    check(data.length === this.size, "shape_mismatch", () => {
      return `[write] tensor [${this.shape}] holds ${this.size} values, got ${data.length}`;
    });
    native.upload(this.handle, convert(data, this.dtype));
  }

  toString(): string {
    return `Tensor(${this.dtype} [${this.shape}] on ${this.device})`;
  }
}

const TENSOR_OPTIONS = ["dtype", "device", "group"] as const;

/** Memory without defined values. Zero-sized dimensions are legal. */
export function empty(shape: Shape, options: TensorOptions = {}): Tensor {
  checkShape("tensor", shape);
  checkOptions("tensor", options, TENSOR_OPTIONS);
  const { dtype = "f32", group = allocationGroup } = options;
  choice("tensor", "dtype", dtype, native.dtypeIndex);
  choice("tensor", "group", group, native.memoryGroupIndex);
  const target = options.device ?? openDevice();
  check(target instanceof Device, "invalid_argument", () => {
    return `[tensor] device is ${show(target)}, expected what device("cpu") returns`;
  });
  return new Tensor(native.empty(target.handle, dtype, group, shape), [...shape], dtype, target);
}

/** @internal The same memory under another shape, `offset` elements further; not recorded. */
export function alias(x: Tensor, shape: Shape, offset = 0): Tensor {
  checkTensor("view", "x", x);
  checkShape("view", shape);
  integer("view", "offset", offset, 0, x.size);
  check(offset + product(shape) <= x.size, "shape_mismatch", () => {
    return `[view] shape [${shape}] at element ${offset} reaches past the ${x.size} values of [${x.shape}]`;
  });
  const result = new Tensor(native.view(x.handle, shape, offset), [...shape], x.dtype, x.device);
  result.isView = true;
  return result;
}

/** Throws unless this is a tensor that was not disposed. */
export function checkTensor(op: string, name: string, value: unknown): asserts value is Tensor {
  check(value instanceof Tensor, "invalid_argument", () => `[${op}] ${name} is ${show(value)}, expected a tensor`);
  value.handle; // throws when it was disposed
}

/** An operand of a kernel; a pair shows the tensor's memory under another shape. */
export type Operand = Tensor | readonly [Tensor, Shape] | null | undefined;

/** @internal Queues a kernel by its name in native/runtime/ops.def. */
export function launch(op: string, operands: readonly Operand[], scalars: readonly number[] = []): void {
  const views: number[] = [];
  try {
    const ids = operands.map((operand, i) => {
      if (operand === null || operand === undefined) return 0;
      if (operand instanceof Tensor) return operand.handle;
      const [tensor, shape] = Array.isArray(operand) ? operand : [operand, []];
      checkTensor(op, `operand ${i}`, tensor);
      checkShape(op, shape);
      const view = native.view(tensor.handle, shape, 0);
      views.push(view);
      return view;
    });
    native.run(op, ids, scalars);
  } finally {
    for (const view of views) native.release(view);
  }
}

function ownDtype(data: TypedArray | readonly number[]): DType {
  if (data instanceof Int32Array) return "i32";
  if (data instanceof Uint8Array) return "u8";
  return data instanceof Uint16Array ? "bf16" : "f32";
}

/** Throws unless these are numbers: those of a list are looked at one by one. */
function checkValues(op: string, data: unknown): void {
  if (ArrayBuffer.isView(data) && !(data instanceof DataView)) {
    check(!(data instanceof BigInt64Array || data instanceof BigUint64Array), "invalid_argument", () => {
      return `[${op}] data is ${show(data)}, whose values are no numbers: convert them first`;
    });
    return;
  }
  check(Array.isArray(data), "invalid_argument", () => {
    return `[${op}] data is ${show(data)}, expected a typed array or a list of numbers`;
  });
  for (let i = 0; i < data.length; i++) {
    if (typeof data[i] === "number") continue;
    throw new LtxError("invalid_argument", `[${op}] data[${i}] is ${show(data[i])}, expected a number`);
  }
}

function convert(data: TypedArray | readonly number[], dtype: DType): NodeJS.TypedArray {
  if (data instanceof Uint16Array) return dtype === "bf16" ? data : convert(widen(data), dtype);
  switch (dtype) {
    case "f32":
      return data instanceof Float32Array ? data : new Float32Array(data);
    case "i32":
      return data instanceof Int32Array ? data : exactly(data, new Int32Array(data), dtype);
    case "u8":
      return data instanceof Uint8Array ? data : exactly(data, new Uint8Array(data), dtype);
    case "bf16":
      return narrow(data instanceof Float32Array ? data : new Float32Array(data));
  }
}

/** The converted values, if none of them became another one. */
function exactly<T extends Int32Array | Uint8Array>(data: ArrayLike<number>, converted: T, dtype: DType): T {
  for (let i = 0; i < converted.length; i++) {
    if (converted[i] === data[i]) continue;
    throw new LtxError("invalid_argument", `[tensor] data[${i}] is ${data[i]}, which ${dtype} can't hold`);
  }
  return converted;
}

/** What `make` makes in the host's memory. @throws LtxError `out_of_memory` where JavaScript throws a RangeError */
function withRoom<T>(op: string, bytes: number, make: () => T): T {
  try {
    return make();
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause;
    throw new LtxError("out_of_memory", `[${op}] the host has no room for ${bytes} bytes: ${cause.message}`, { cause });
  }
}

/** f32 to the bits of bf16, rounded to nearest even. */
export function narrow(values: Float32Array): Uint16Array {
  check(values instanceof Float32Array, "invalid_argument", () => {
    return `[narrow] values are ${show(values)}, expected a Float32Array`;
  });
  // A transferred buffer leaves an array of no values.
  if (values.length === 0) return new Uint16Array(0);
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const result = withRoom("narrow", 2 * values.length, () => new Uint16Array(values.length));
  for (let i = 0; i < bits.length; i++) {
    const u = bits[i];
    result[i] = (u & 0x7fffffff) > 0x7f800000 ? (u >>> 16) | 0x40 : (u + 0x7fff + ((u >>> 16) & 1)) >>> 16;
  }
  return result;
}

/** The bits of bf16 to f32. */
export function widen(bits: Uint16Array): Float32Array {
  check(bits instanceof Uint16Array, "invalid_argument", () => {
    return `[widen] bits are ${show(bits)}, expected a Uint16Array`;
  });
  const result = withRoom("widen", 4 * bits.length, () => new Uint32Array(bits.length));
  for (let i = 0; i < bits.length; i++) result[i] = bits[i] << 16;
  return new Float32Array(result.buffer);
}
