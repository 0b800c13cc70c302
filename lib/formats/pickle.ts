/**
 * A restricted reader of Python pickles, protocols 2 to 5: the stack machine of Python's `pickletools`, without any way
 * to import or call Python code. Only globals on the caller's list exist; a pickle that names another one is refused.
 *
 * | Python | here |
 * | --- | --- |
 * | None, bool, str, float | null, boolean, string, number |
 * | int | number, or bigint past 2^53 |
 * | bytes | Uint8Array |
 * | list, tuple | Array, the latter frozen |
 * | dict, OrderedDict | Map |
 * | anything else | what the caller's functions return |
 */
import { LtxError } from "../errors.js";

/** A Python global that a pickle may name. */
export interface PickleGlobal {
  readonly name: string;
  /** What calling it gives; absent for globals that are only values. */
  readonly call?: (args: readonly unknown[]) => unknown;
}

export interface UnpickleOptions {
  /** The globals that exist, by "module.name". */
  globals: ReadonlyMap<string, PickleGlobal>;
  /** The object behind a persistent id. */
  persistent?: (id: unknown) => unknown;
  /** What messages call the file. */
  name: string;
}

/** The bytes end before the pickle does. */
export class PickleTruncated extends LtxError {
  constructor(name: string) {
    super("file_format", `[pickle] ${name}: the pickle ends early; the file is damaged or not complete`);
  }
}

/** Longer integers mean nothing in a checkpoint, and their conversion takes quadratic time. */
const MAX_INTEGER_BYTES = 64;

/**
 * Reads the pickle that begins at `start`.
 * @returns its object, and where the bytes after it begin
 * @throws LtxError `checkpoint` for a global that is not allowed, `file_format` for everything that is no such pickle
 */
export function unpickle(bytes: Uint8Array, options: UnpickleOptions, start = 0): { value: unknown; end: number } {
  const machine = new Machine(bytes, start, options);
  const value = machine.run();
  return { value, end: machine.position };
}

class Machine {
  private readonly view: DataView;
  private stack: unknown[] = [];
  /** Stacks that wait below the marks set so far. */
  private readonly marks: unknown[][] = [];
  private readonly memo = new Map<number, unknown>();

  constructor(
    private readonly bytes: Uint8Array,
    public position: number,
    private readonly options: UnpickleOptions,
  ) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  run(): unknown {
    for (;;) {
      const opcode = this.uint8();
      if (opcode === 0x2e) {
        const value = this.pop();
        if (this.stack.length > 0 || this.marks.length > 0) this.fail("objects are left over at its end");
        return value;
      }
      this.step(opcode);
    }
  }

  /** One instruction; the letters are the names by which Python's pickle.py knows them. */
  private step(opcode: number): void {
    switch (opcode) {
      case 0x80: {
        const protocol = this.uint8();
        if (protocol > 5) this.fail(`protocol ${protocol} is unknown`);
        return;
      }
      case 0x95: // FRAME: its length only helps streaming readers.
        this.skip(8);
        return;

      case 0x4e: // N
        return this.push(null);
      case 0x88:
        return this.push(true);
      case 0x89:
        return this.push(false);
      case 0x4b: // K
        return this.push(this.uint8());
      case 0x4d: // M
        return this.push(this.view.getUint16(this.skip(2), true));
      case 0x4a: // J
        return this.push(this.view.getInt32(this.skip(4), true));
      case 0x8a:
        return this.push(this.integer(this.uint8()));
      case 0x8b:
        return this.push(this.integer(this.uint32()));
      case 0x47: // G
        return this.push(this.view.getFloat64(this.skip(8), false));

      case 0x8c:
        return this.push(this.text(this.uint8()));
      case 0x58: // X
        return this.push(this.text(this.uint32()));
      case 0x8d:
        return this.push(this.text(this.uint64()));
      case 0x43: // C
        return this.push(this.slice(this.uint8()));
      case 0x42: // B
        return this.push(this.slice(this.uint32()));
      case 0x8e:
        return this.push(this.slice(this.uint64()));

      case 0x28: // (
        this.marks.push(this.stack);
        this.stack = [];
        return;
      case 0x30: // 0
        this.pop();
        return;
      case 0x31: // 1
        this.popMark();
        return;
      case 0x32: // 2
        return this.push(this.top());

      case 0x5d: // ]
        return this.push([]);
      case 0x6c: // l
        return this.push(this.popMark());
      case 0x61: {
        const item = this.pop(); // a
        this.list().push(item);
        return;
      }
      case 0x65: {
        const items = this.popMark(); // e
        const list = this.list();
        for (const item of items) list.push(item);
        return;
      }

      case 0x29: // )
        return this.push(Object.freeze([]));
      case 0x74: // t
        return this.push(Object.freeze(this.popMark()));
      case 0x85:
      case 0x86:
      case 0x87: {
        const items = Array.from({ length: opcode - 0x84 }, () => this.pop());
        return this.push(Object.freeze(items.reverse()));
      }

      case 0x7d: // }
        return this.push(new Map());
      case 0x64: // d
        return this.push(this.fill(new Map(), this.popMark()));
      case 0x73: {
        const value = this.pop(); // s
        const key = this.pop();
        this.fill(this.dict(), [key, value]);
        return;
      }
      case 0x75: {
        const items = this.popMark(); // u
        this.fill(this.dict(), items);
        return;
      }

      case 0x71: // q
        return this.remember(this.uint8());
      case 0x72: // r
        return this.remember(this.uint32());
      case 0x94:
        return this.remember(this.memo.size);
      case 0x68: // h
        return this.push(this.recall(this.uint8()));
      case 0x6a: // j
        return this.push(this.recall(this.uint32()));

      case 0x63: {
        const module = this.line(); // c
        return this.push(this.global(module, this.line()));
      }
      case 0x93: {
        const name = this.pop();
        const module = this.pop();
        if (typeof module !== "string" || typeof name !== "string") return this.fail("a global's name is no text");
        return this.push(this.global(module, name));
      }
      case 0x52: // R
      case 0x81: {
        const args = this.pop();
        const callee = this.pop();
        return this.push(this.call(callee, args));
      }
      case 0x51: {
        const id = this.pop(); // Q
        if (!this.options.persistent) return this.fail("it refers to objects outside itself");
        return this.push(this.options.persistent(id));
      }
      case 0x62: {
        const state = this.pop(); // b
        // An OrderedDict that is a state dict carries its modules' versions in an attribute. Nothing here needs them.
        if (!(this.top() instanceof Map) || !(state instanceof Map)) this.fail("only dicts may have attributes");
        return;
      }
      default:
        return this.fail(`instruction 0x${opcode.toString(16).padStart(2, "0")} is not allowed in it`);
    }
  }

  private fail(reason: string): never {
    const { name } = this.options;
    throw new LtxError("file_format", `[pickle] ${name}: ${reason}; the file is damaged or no PyTorch checkpoint`);
  }

  /** Moves past `length` bytes; @returns where they begin */
  private skip(length: number): number {
    const begin = this.position;
    if (length > this.bytes.length - begin) throw new PickleTruncated(this.options.name);
    this.position += length;
    return begin;
  }

  private uint8(): number {
    return this.bytes[this.skip(1)];
  }

  private uint32(): number {
    return this.view.getUint32(this.skip(4), true);
  }

  /** A length: past 2^53 its rounding does no harm, no file is as long. */
  private uint64(): number {
    return Number(this.view.getBigUint64(this.skip(8), true));
  }

  private slice(length: number): Uint8Array {
    const begin = this.skip(length);
    return this.bytes.slice(begin, begin + length);
  }

  private text(length: number): string {
    const begin = this.skip(length);
    return Buffer.from(this.bytes.buffer, this.bytes.byteOffset + begin, length).toString("utf8");
  }

  private line(): string {
    const end = this.bytes.indexOf(0x0a, this.position);
    if (end < 0) throw new PickleTruncated(this.options.name);
    const text = this.text(end - this.position);
    this.position = end + 1;
    return text;
  }

  /** A little-endian two's complement integer. */
  private integer(length: number): number | bigint {
    if (length > MAX_INTEGER_BYTES) this.fail(`an integer of ${length} bytes is over the limit`);
    let value = 0n;
    const begin = this.skip(length);
    for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.bytes[begin + i]);
    value = BigInt.asIntN(8 * length, value);
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : value;
  }

  private push(value: unknown): void {
    this.stack.push(value);
  }

  private pop(): unknown {
    if (this.stack.length === 0) this.fail("an instruction lacks its operand");
    return this.stack.pop();
  }

  private top(): unknown {
    if (this.stack.length === 0) this.fail("an instruction lacks its operand");
    return this.stack[this.stack.length - 1];
  }

  private popMark(): unknown[] {
    const items = this.stack;
    const below = this.marks.pop();
    if (!below) return this.fail("an instruction lacks its mark");
    this.stack = below;
    return items;
  }

  private list(): unknown[] {
    const list = this.top();
    if (!Array.isArray(list) || Object.isFrozen(list)) return this.fail("items are added to what is no list");
    return list;
  }

  private dict(): Map<unknown, unknown> {
    const dict = this.top();
    if (!(dict instanceof Map)) return this.fail("items are set in what is no dict");
    return dict;
  }

  private fill(dict: Map<unknown, unknown>, items: readonly unknown[]): Map<unknown, unknown> {
    if (items.length % 2 !== 0) this.fail("a dict has a key without a value");
    for (let i = 0; i < items.length; i += 2) dict.set(items[i], items[i + 1]);
    return dict;
  }

  private remember(index: number): void {
    this.memo.set(index, this.top());
  }

  private recall(index: number): unknown {
    if (!this.memo.has(index)) this.fail(`it recalls object ${index}, which is not there`);
    return this.memo.get(index);
  }

  private global(module: string, name: string): PickleGlobal {
    const full = `${module}.${name}`;
    const found = this.options.globals.get(full);
    if (found) return found;
    throw new LtxError(
      "checkpoint",
      `[pickle] ${this.options.name} asks for the Python object ${JSON.stringify(full.slice(0, 200))}: refused, ` +
        "only tensors and plain containers are read; save the model's state dict alone",
    );
  }

  private call(callee: unknown, args: unknown): unknown {
    const callable = callee as PickleGlobal | null | undefined;
    const known =
      callable !== null && typeof callable === "object" && this.options.globals.get(callable.name) === callee;
    if (!known || !callable.call || !Array.isArray(args)) return this.fail("it calls what cannot be called");
    return callable.call(args);
  }
}
