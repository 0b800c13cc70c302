/**
 * A restricted reader of Python pickles, protocols 2 to 5: the stack machine of Python's `pickletools`, without any way
 * to import or call Python code. Only globals that the caller knows exist; a pickle that names another one is refused.
 *
 * | Python | here |
 * | --- | --- |
 * | None, bool, str, float | null, boolean, string, number |
 * | int | number, or bigint past 2^53 |
 * | bytes, bytearray | Uint8Array |
 * | list, tuple | Array, the latter frozen |
 * | dict, OrderedDict | Map |
 * | set, frozenset | Set |
 * | anything else | what the caller's functions return, such as an {@link Opaque} |
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import { getHeapStatistics } from "node:v8";
import { LtxError } from "../errors.js";

/** A Python global that a pickle may name. */
export class PickleGlobal {
  /** @param call what calling it gives; absent for globals that are only values */
  constructor(
    readonly name: string,
    readonly call?: (args: readonly unknown[]) => unknown,
  ) {}
}

/** A Python object that nothing here needs: what is put into it is dropped. */
export class Opaque {
  /** @param what names it in messages */
  constructor(readonly what: string) {}
}

export interface UnpickleOptions {
  /** The globals that exist, by "module.name". */
  globals: { get(name: string): PickleGlobal | undefined };
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
 * What all objects of a pickle may take on the heap, about: a tensor with its arguments is charged 2 kB. One byte of a pickle
 * can make an object of hundreds, and V8 ends the process when its heap is full.
 */
const MAX_HEAP_BYTES = 256 * 2 ** 20;
/** What the objects take, measured on Node 20, rounded up. */
const COST = { slot: 16, memo: 48, mark: 96, array: 96, dict: 320, entry: 64, text: 32, object: 128 };
/** Instructions between two looks at the event loop: a few milliseconds. */
const TURN = 10_000;

/**
 * Reads the pickle that begins at `start`, in pieces that let the event loop go on.
 * @returns its object, and where the bytes after it begin
 * @throws LtxError `checkpoint` for a global that is not allowed, `file_format` for everything that is not such a pickle
 *   or would fill the heap
 */
export async function unpickle(
  bytes: Uint8Array,
  options: UnpickleOptions,
  start = 0,
): Promise<{ value: unknown; end: number }> {
  const machine = new Machine(bytes, start, options);
  while (!machine.run(TURN)) await nextTurn();
  return { value: machine.result, end: machine.position };
}

class Machine {
  private readonly view: DataView;
  private stack: unknown[] = [];
  /** Stacks that wait below the marks set so far. */
  private readonly marks: unknown[][] = [];
  private readonly memo = new Map<number, unknown>();
  /** Heap bytes that may still be taken. What is freed again is not given back: no honest pickle comes near. */
  private budget = Math.min(MAX_HEAP_BYTES, getHeapStatistics().heap_size_limit / 4);
  result: unknown;

  constructor(
    private readonly bytes: Uint8Array,
    public position: number,
    private readonly options: UnpickleOptions,
  ) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** Carries out at most `steps` instructions; @returns whether the pickle has ended */
  run(steps: number): boolean {
    for (let i = 0; i < steps; i++) {
      const opcode = this.uint8();
      if (opcode === 0x2e) {
        this.result = this.pop();
        if (this.stack.length > 0 || this.marks.length > 0) this.fail("objects are left over at its end");
        return true;
      }
      this.step(opcode);
    }
    return false;
  }

  private charge(bytes: number): void {
    this.budget -= bytes;
    if (this.budget < 0) this.fail("its objects would fill the memory");
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
      case 0x96: // BYTEARRAY8
        return this.push(this.slice(this.uint64()));

      case 0x28: // (
        this.charge(COST.mark);
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
        this.charge(COST.array);
        return this.push([]);
      case 0x6c: // l
        return this.push(this.popMark());
      case 0x61: {
        const item = this.pop(); // a
        return this.extend([item]);
      }
      case 0x65: // e
        return this.extend(this.popMark());

      case 0x29: // )
        this.charge(COST.array);
        return this.push(Object.freeze([]));
      case 0x74: // t
        return this.push(Object.freeze(this.popMark()));
      case 0x85:
      case 0x86:
      case 0x87: {
        this.charge(COST.array);
        const items = Array.from({ length: opcode - 0x84 }, () => this.pop());
        return this.push(Object.freeze(items.reverse()));
      }

      case 0x7d: // }
        this.charge(COST.dict);
        return this.push(new Map());
      case 0x64: {
        const items = this.popMark(); // d
        this.charge(COST.dict);
        this.push(new Map());
        return this.fill(items);
      }
      case 0x73: {
        const value = this.pop(); // s
        const key = this.pop();
        return this.fill([key, value]);
      }
      case 0x75: // u
        return this.fill(this.popMark());

      case 0x8f:
        this.charge(COST.dict);
        return this.push(new Set());
      case 0x90:
        return this.add(this.popMark()); // ADDITEMS
      case 0x91: {
        const items = this.popMark(); // FROZENSET
        this.charge(COST.dict);
        this.push(new Set());
        return this.add(items);
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
      case 0x92: {
        this.pop(); // NEWOBJ_EX: its keyword arguments
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
        const object = this.top();
        // An OrderedDict that is a state dict carries its modules' versions in an attribute. Nothing here needs them.
        const fits = object instanceof Opaque || (object instanceof Map && state instanceof Map);
        if (!fits) this.fail("only dicts and objects of a class may have attributes");
        return;
      }
      default:
        return this.fail(`instruction 0x${opcode.toString(16).padStart(2, "0")} is not allowed in it`);
    }
  }

  private fail(reason: string): never {
    const { name } = this.options;
    throw new LtxError("file_format", `[pickle] ${name}: ${reason}; the file is damaged or not a PyTorch checkpoint`);
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
    this.charge(COST.object + length);
    return this.bytes.slice(begin, begin + length);
  }

  private text(length: number): string {
    const begin = this.skip(length);
    this.charge(COST.text + 2 * length);
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
    this.charge(COST.text);
    for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.bytes[begin + i]);
    value = BigInt.asIntN(8 * length, value);
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : value;
  }

  private push(value: unknown): void {
    this.charge(COST.slot);
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

  /** Appends to the list on top. */
  private extend(items: readonly unknown[]): void {
    const list = this.top();
    if (list instanceof Opaque) return;
    if (!Array.isArray(list) || Object.isFrozen(list)) return this.fail("items are added to what is not a list");
    this.charge(COST.slot * items.length);
    for (const item of items) list.push(item);
  }

  /** Adds to the set on top. */
  private add(items: readonly unknown[]): void {
    const set = this.top();
    if (set instanceof Opaque) return;
    if (!(set instanceof Set)) return this.fail("items are added to what is not a set");
    this.charge(COST.entry * items.length);
    for (const item of items) set.add(item);
  }

  /** Sets keys, each with its value behind it, of the dict on top. */
  private fill(items: readonly unknown[]): void {
    const dict = this.top();
    if (items.length % 2 !== 0) this.fail("a dict has a key without a value");
    if (dict instanceof Opaque) return;
    if (!(dict instanceof Map)) return this.fail("items are set in what is not a dict");
    this.charge((COST.entry * items.length) / 2);
    for (let i = 0; i < items.length; i += 2) dict.set(items[i], items[i + 1]);
  }

  private remember(index: number): void {
    this.charge(COST.memo);
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
        "only tensors, plain containers and well-known classes are read; save the model's state dict alone",
    );
  }

  private call(callee: unknown, args: unknown): unknown {
    if (!(callee instanceof PickleGlobal) || !callee.call || !Array.isArray(args)) {
      return this.fail("it calls what cannot be called");
    }
    // What is called may copy its arguments, each time anew.
    this.charge(args.reduce((n, arg) => n + COST.entry * lengthOf(arg), COST.dict));
    return callee.call(args);
  }
}

function lengthOf(value: unknown): number {
  if (value instanceof Map || value instanceof Set) return value.size;
  return typeof value === "string" || Array.isArray(value) || value instanceof Uint8Array ? value.length : 0;
}
