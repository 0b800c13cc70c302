/**
 * Checks the arguments of the package's functions against their TypeScript types, which a program in JavaScript does not
 * have: scripts/signatures.ts writes them down when the package is built. What types do not say (whole numbers, ranges,
 * shapes) each function checks itself.
 */
import { show } from "./arguments.js";
import { type ErrorCode, LtxError } from "./errors.js";
import { closest, editDistance } from "./suggest.js";
import { Tensor } from "./tensor/index.js";

export type Spec =
  | "any"
  | "string"
  | "number"
  | "boolean"
  | "function"
  | "undefined"
  | "null"
  | { readonly literal: string | number | boolean }
  | { readonly any: readonly Spec[] }
  | { readonly array: Spec }
  | { readonly tuple: readonly Spec[]; readonly least: number }
  /** A class of the package or of JavaScript, by its name. */
  | { readonly instance: string }
  | { readonly map: Spec; readonly key: Spec }
  /** An object with these properties, `values` if it has others. */
  | { readonly fields: Readonly<Record<string, Spec>>; readonly values?: Spec }
  /** A place in {@link Signatures.types}. */
  | { readonly type: number };

export interface Parameter {
  readonly name: string;
  readonly spec: Spec;
  readonly optional?: boolean;
  /** All arguments from here on. */
  readonly rest?: boolean;
}

export interface Signature {
  /** How the function says that it failed. */
  readonly fails: "throws" | "rejects" | "yields";
  readonly overloads: readonly (readonly Parameter[])[];
}

export interface Signatures {
  /** By name: `psnr`, `nn.Linear`'s constructor as `new nn.Linear`, `Video.fromFloats`, and `Video#clip` of each video. */
  readonly calls: Readonly<Record<string, Signature>>;
  /** What is not part of the API, such as `new Tensor`. */
  readonly hidden: readonly string[];
  readonly types: readonly Spec[];
}

/** What was found in the wrong place. */
interface Mismatch {
  readonly path: string;
  readonly value: unknown;
  /** What was expected: a type, or what {@link ALIVE} and the like say. */
  readonly expected: Spec | Refusal;
  /** How many steps lie between the argument and the value. */
  readonly depth: number;
}

type AnyFunction = (...args: unknown[]) => unknown;
type AnyClass = abstract new (...args: never[]) => unknown;

class Guard {
  private readonly classes = new Map<string, AnyClass>();
  private readonly guarded = new Map<unknown, unknown>();

  /** What has a signature, or holds something that has. */
  private readonly covered = new Set<string>();

  constructor(private readonly signatures: Signatures) {
    for (const key of [...Object.keys(signatures.calls), ...signatures.hidden]) {
      const parts = key.replace(/^new /, "").split(/[.#]/);
      for (let n = 1; n <= parts.length; n++) this.covered.add(parts.slice(0, n).join("."));
    }
  }

  /** The exports of a module with every function and class of it checked. */
  module(exports: object, prefix = ""): object {
    this.collect(exports);
    const result: Record<string, unknown> = {};
    if ("__esModule" in exports) Object.defineProperty(result, "__esModule", { value: true });
    for (const [name, value] of Object.entries(exports)) {
      const full = prefix + name;
      if (isClass(value)) result[name] = this.class(full, value);
      else if (typeof value === "function") result[name] = this.function(full, value as AnyFunction);
      else if (isNamespace(value) && Object.keys(value).some((key) => this.covers(`${full}.${key}`))) {
        result[name] = this.module(value, `${full}.`);
      } else result[name] = value;
    }
    return result;
  }

  private covers(name: string): boolean {
    return this.covered.has(name);
  }

  private collect(exports: object): void {
    for (const value of Object.values(exports)) {
      if (isClass(value)) this.classes.set(value.name, value);
      else if (isNamespace(value)) this.collect(value);
    }
  }

  private function(name: string, fn: AnyFunction): AnyFunction {
    const signature = Object.hasOwn(this.signatures.calls, name) ? this.signatures.calls[name] : undefined;
    if (!signature) return fn;
    const known = this.guarded.get(fn);
    if (known) return known as AnyFunction;
    const check = this.checkOf(name, signature);
    const checked = function (this: unknown, ...args: unknown[]): unknown {
      const error = check(args);
      if (error === undefined) return fn.apply(this, args);
      if (signature.fails === "rejects") return Promise.reject(error);
      if (signature.fails === "yields") return failing(error);
      throw error;
    };
    Object.defineProperties(checked, {
      name: { value: fn.name, configurable: true },
      length: { value: fn.length, configurable: true },
    });
    this.guarded.set(fn, checked);
    return checked;
  }

  /** The class itself with its methods replaced, and a constructor before it that checks. */
  private class(name: string, Class: AnyClass): unknown {
    if (!this.covers(name)) return Class;
    const known = this.guarded.get(Class);
    if (known) return known;
    const prototype = Class.prototype as Record<string, unknown>;
    for (const key of Object.getOwnPropertyNames(prototype)) {
      const { value } = Object.getOwnPropertyDescriptor(prototype, key) ?? {};
      if (key === "constructor" || typeof value !== "function") continue;
      const method = this.function(`${name}#${key}`, value);
      if (method !== value)
        Object.defineProperty(prototype, key, { value: method, writable: true, configurable: true });
    }
    const signature = Object.hasOwn(this.signatures.calls, `new ${name}`) && this.signatures.calls[`new ${name}`];
    const check = signature ? this.checkOf(`new ${name}`, signature) : () => undefined;
    const refused = (what: string) => {
      const makers = Object.keys(this.signatures.calls).filter((key) => key.startsWith(`${name}.`));
      const hint = what.startsWith("new ") && makers.length > 0 ? `: make one by ${makers.join(", ")}` : "";
      return new LtxError("invalid_argument", `[${what}] is not part of the API${hint}`);
    };
    const hidden = new Set(this.signatures.hidden);
    const statics = new Map<unknown, AnyFunction>();
    const proxy: AnyClass = new Proxy(Class, {
      construct: (target, args, newTarget) => {
        if (hidden.has(`new ${name}`)) throw refused(`new ${name}`);
        const error = check(args);
        if (error) throw error;
        return Reflect.construct(target as never, args, newTarget === proxy ? (target as never) : newTarget);
      },
      get: (target, key) => {
        const value = Reflect.get(target, key);
        if (typeof value !== "function" || key === "prototype" || typeof key !== "string") return value;
        if (hidden.has(`${name}.${key}`)) {
          return () => {
            throw refused(`${name}.${key}`);
          };
        }
        const found = statics.get(value) ?? this.function(`${name}.${key}`, (value as AnyFunction).bind(target));
        statics.set(value, found);
        return found;
      },
    });
    Object.defineProperty(prototype, "constructor", { value: proxy, writable: true, configurable: true });
    this.guarded.set(Class, proxy);
    return proxy;
  }

  /**
   * What is wrong with the arguments of a call. Calls are many and functions too: what the signature alone says is looked
   * up once, at the first call.
   */
  private checkOf(name: string, { overloads }: Signature): (args: readonly unknown[]) => LtxError | undefined {
    let options: readonly (ReadonlySet<string> | null)[] | undefined;
    return (args) => {
      options ??= this.optionsOf(overloads);
      return this.mismatch(name, overloads, options, args);
    };
  }

  /** Of each argument the names that it may have, where it is an object of options. */
  private optionsOf(overloads: Signature["overloads"]): (ReadonlySet<string> | null)[] {
    return overloads[0].map(({ name: parameter }, i) => {
      if (parameter !== "options" && parameter !== "request") return null;
      return new Set(overloads.flatMap((one) => (one[i] ? this.fieldsOf(one[i].spec) : [])));
    });
  }

  private mismatch(
    name: string,
    overloads: Signature["overloads"],
    options: readonly (ReadonlySet<string> | null)[],
    args: readonly unknown[],
  ): LtxError | undefined {
    let left: Mismatch[] = [];
    let fewest = Number.POSITIVE_INFINITY;
    for (const parameters of overloads) {
      const wrong = this.firstWrong(parameters, args);
      if (!wrong) return misspelt(name, options, args);
      // The overload that was meant is the one of which the least is wrong.
      const count = overloads.length === 1 ? 0 : this.countWrong(parameters, args);
      if (count < fewest) [left, fewest] = [[], count];
      if (count === fewest) left.push(wrong);
    }
    if (left.length === 0) return undefined;
    const deepest = left.reduce((a, b) => (b.depth > a.depth ? b : a));
    const { path, value } = deepest;
    const same = left.filter((one) => one.path === path && one.depth === deepest.depth).map(({ expected }) => expected);
    const refusal = same.find((one): one is Refusal => one instanceof Refusal);
    const text = refusal?.text ?? this.describe({ any: same as Spec[] }, value);
    const code = refusal?.code ?? "invalid_argument";
    return new LtxError(code, `[${name.replace("#", ".")}] ${path} is ${show(value)}, expected ${text}`);
  }

  /** How many arguments, or of objects their fields, are wrong. */
  private countWrong(parameters: readonly Parameter[], args: readonly unknown[]): number {
    return parameters.reduce((sum, { name, spec, optional }, i) => {
      const value = args[i];
      if (optional && value === undefined) return sum;
      const fields = typeof spec === "object" && "type" in spec ? this.signatures.types[spec.type] : spec;
      if (value === null || typeof value !== "object" || typeof fields === "string" || !("fields" in fields)) {
        return sum + (this.wrong(value, spec, name, 0) ? 1 : 0);
      }
      const own = value as Record<string, unknown>;
      return sum + Object.entries(fields.fields).filter(([key, field]) => this.wrong(own[key], field, "", 0)).length;
    }, 0);
  }

  private fieldsOf(spec: Spec): string[] {
    if (typeof spec === "string") return [];
    if ("type" in spec) return this.fieldsOf(this.signatures.types[spec.type]);
    if ("any" in spec) return spec.any.flatMap((part) => this.fieldsOf(part));
    return "fields" in spec && spec.values === undefined ? Object.keys(spec.fields) : [];
  }

  private firstWrong(parameters: readonly Parameter[], args: readonly unknown[]): Mismatch | undefined {
    for (const [i, { name, spec, optional, rest }] of parameters.entries()) {
      const given = rest ? args.slice(i) : [args[i]];
      for (const value of given) {
        if (optional && value === undefined) continue;
        const found = this.wrong(value, spec, name, 0);
        if (found) return found;
      }
    }
    return undefined;
  }

  private wrong(value: unknown, spec: Spec, path: string, depth: number): Mismatch | undefined {
    const mismatch = (): Mismatch => ({ path, value, expected: spec, depth });
    if (spec === "any") return undefined;
    if (spec === "null") return value === null ? undefined : mismatch();
    if (typeof spec === "string") return typeof value === spec ? undefined : mismatch();
    if ("type" in spec) return this.wrong(value, this.signatures.types[spec.type], path, depth);
    if ("literal" in spec) return value === spec.literal ? undefined : mismatch();
    if ("any" in spec) {
      let deepest: Mismatch | undefined;
      for (const part of spec.any) {
        const found = this.wrong(value, part, path, depth);
        if (!found) return undefined;
        if (!deepest || found.depth > deepest.depth) deepest = found;
      }
      return deepest && deepest.depth > depth ? deepest : mismatch();
    }
    if ("instance" in spec) return this.wrongInstance(value, spec.instance, mismatch);
    if ("map" in spec) {
      if (!(value instanceof Map)) return mismatch();
      for (const [key, item] of value) {
        const at = `${path}.get(${show(key)})`;
        const found =
          this.wrong(key, spec.key, `a key of ${path}`, depth + 1) ?? this.wrong(item, spec.map, at, depth + 1);
        if (found) return found;
      }
      return undefined;
    }
    if ("array" in spec) {
      if (!Array.isArray(value)) return mismatch();
      for (let i = 0; i < value.length; i++) {
        const found = this.wrong(value[i], spec.array, `${path}[${i}]`, depth + 1);
        if (found) return found;
      }
      return undefined;
    }
    if ("tuple" in spec) {
      if (!Array.isArray(value)) return mismatch();
      // An array of another length is nearer than no array.
      if (value.length < spec.least || value.length > spec.tuple.length) return { ...mismatch(), depth: depth + 0.5 };
      for (const [i, item] of value.entries()) {
        const found = this.wrong(item, spec.tuple[i], `${path}[${i}]`, depth + 1);
        if (found) return found;
      }
      return undefined;
    }
    if (value === null || typeof value !== "object") return mismatch();
    if (isDisposed(value)) return { ...mismatch(), expected: ALIVE };
    const own = value as Record<string, unknown>;
    for (const [key, field] of Object.entries(spec.fields)) {
      const found = this.wrong(own[key], field, `${path}.${key}`, depth + 1);
      if (found) return found;
    }
    if (spec.values === undefined || spec.values === "any") return undefined;
    for (const key of Object.keys(own)) {
      if (Object.hasOwn(spec.fields, key)) continue;
      const found = this.wrong(own[key], spec.values, `${path}.${key}`, depth + 1);
      if (found) return found;
    }
    return undefined;
  }

  private wrongInstance(value: unknown, name: string, mismatch: () => Mismatch): Mismatch | undefined {
    const Class = this.classes.get(name) ?? (globalThis as Record<string, unknown>)[name];
    if (typeof Class !== "function") return value !== null && typeof value === "object" ? undefined : mismatch();
    // Arrays of another realm (node:vm, iframes of Electron) are of a class of the same name.
    const foreign = Class === (globalThis as Record<string, unknown>)[name] && tagOf(value) === `[object ${name}]`;
    if (!(value instanceof (Class as AnyClass)) && !foreign) return mismatch();
    return isDisposed(value) ? { ...mismatch(), expected: ALIVE } : undefined;
  }

  private describe(spec: Spec, value: unknown): string {
    if (spec === "string") return "a text";
    if (spec === "number") return "a number";
    if (spec === "boolean") return "true or false";
    if (spec === "function") return "a function";
    if (typeof spec === "string") return spec;
    if ("type" in spec) return this.describe(this.signatures.types[spec.type], value);
    if ("literal" in spec) return String(spec.literal);
    if ("array" in spec) return "an array";
    if ("map" in spec) return "a Map";
    if ("tuple" in spec) return `an array of ${spec.tuple.length}`;
    if ("instance" in spec) return `${/^([AEIO]|U(?!int))/.test(spec.instance) ? "an" : "a"} ${spec.instance}`;
    if ("fields" in spec) {
      const names = Object.keys(spec.fields);
      return names.length === 0
        ? "an object"
        : `an object with ${names.slice(0, 6).join(", ")}${names.length > 6 ? ", …" : ""}`;
    }
    const parts = flat(spec).filter((part) => part !== "undefined");
    const names = parts.flatMap((part) =>
      typeof part === "object" && "literal" in part ? [String(part.literal)] : [],
    );
    const others = parts.filter((part) => !(typeof part === "object" && "literal" in part));
    const near = typeof value === "string" ? closest(value, names) : undefined;
    const choices = [...new Set(names)];
    const known = choices.length > 1 ? [`one of ${choices.join(", ")}`] : choices;
    const texts = new Set([...others.map((part) => this.describe(part, value)), ...known]);
    return `${[...texts].join(" or ")}${near === undefined ? "" : `; did you mean ${near}?`}`;
  }
}

/**
 * An option that is none, but is written much like one: it would be left out without a word.
 * @param options as {@link Guard.optionsOf} gives them
 */
function misspelt(
  name: string,
  options: readonly (ReadonlySet<string> | null)[],
  args: readonly unknown[],
): LtxError | undefined {
  for (const [i, names] of options.entries()) {
    const given = args[i];
    if (!names?.size || given === null || typeof given !== "object") continue;
    for (const key of Object.keys(given)) {
      if (names.has(key)) continue;
      const known = [...names];
      const plain = (text: string) => text.replaceAll(/[_-]/g, "").toLowerCase();
      const slips = key.length > 5 ? 2 : 1;
      const same = known.find((one) => plain(one) === plain(key));
      const near = same ?? known.find((one) => key.length <= LONGEST_NAME && editDistance(one, key) <= slips);
      if (near === undefined || (same === undefined && Object.hasOwn(given, near))) continue;
      const text = `[${name.replace("#", ".")}] unknown option ${show(key)}, did you mean ${near}?`;
      return new LtxError("invalid_argument", text);
    }
  }
  return undefined;
}

const isDisposed = (value: unknown): boolean =>
  value instanceof Tensor && (value as { alive?: boolean }).alive !== true;

/** Longer words are no slip of the fingers. */
const LONGEST_NAME = 60;

/** What no type says. */
class Refusal {
  constructor(
    readonly code: ErrorCode,
    readonly text: string,
  ) {}
}

const ALIVE = new Refusal("disposed", "a tensor that was not disposed");

const tagOf = (value: unknown): string => Object.prototype.toString.call(value);

const flat = (spec: Spec): Spec[] => (typeof spec === "object" && "any" in spec ? spec.any.flatMap(flat) : [spec]);

const isClass = (value: unknown): value is AnyClass =>
  typeof value === "function" && /^class\b/.test(Function.prototype.toString.call(value));

const isNamespace = (value: unknown): value is object =>
  typeof value === "object" &&
  value !== null &&
  ("__esModule" in value || (value as { [Symbol.toStringTag]?: unknown })[Symbol.toStringTag] === "Module");

// biome-ignore lint/correctness/useYield: its first step fails
async function* failing(error: LtxError): AsyncGenerator<never> {
  throw error;
}

/** `exports`, whose functions, constructors and methods throw an {@link LtxError} for arguments of other types. */
export function guard<T extends object>(exports: T, signatures: Signatures): T {
  return new Guard(signatures).module(exports) as T;
}
