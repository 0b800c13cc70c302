/**
 * Checks of what a caller passes. Each throws an {@link LtxError} that names the function, the argument, its value and
 * what was expected: TypeScript's types are no help to a program in JavaScript.
 */
import { check, LtxError } from "./errors.js";
import { closest } from "./suggest.js";

const LONGEST = 80;

/** A value as messages show it. */
export function show(value: unknown): string {
  let text: string;
  try {
    text = shown(value);
  } catch {
    text = "an object"; // whose own code threw
  }
  return text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
}

function shown(value: unknown, nested = false): string {
  if (typeof value === "string") return JSON.stringify(value.slice(0, LONGEST));
  if (typeof value === "bigint") return `${value}n`;
  if (typeof value === "function") return "a function";
  if (value === null || typeof value !== "object") return String(value);
  if (Array.isArray(value)) {
    if (nested) return "[…]";
    const items = value.slice(0, 12).map((item) => shown(item, true));
    return `[${items.join(", ")}${value.length > 12 ? ", …" : ""}]`;
  }
  const name = value.constructor?.name ?? "Object";
  if (ArrayBuffer.isView(value)) return `${name} of ${value.byteLength} bytes`;
  const describes = typeof value.toString === "function" && value.toString !== Object.prototype.toString;
  return describes ? String(value) : `${name} {${Object.keys(value).slice(0, 8).join(", ")}}`;
}

function refuse(op: string, name: string, value: unknown, expected: string): never {
  throw new LtxError("invalid_argument", `[${op}] ${name} is ${show(value)}, expected ${expected}`);
}

const range = (min: number, max: number): string => {
  if (min === -Infinity && max === Infinity) return "";
  return max === Infinity ? ` of at least ${min}` : min === -Infinity ? ` of at most ${max}` : ` from ${min} to ${max}`;
};

/** A whole number from `min` to `max`. */
export function integer(op: string, name: string, value: unknown, min = -Infinity, max = Infinity): number {
  if (!Number.isSafeInteger(value) || (value as number) < min || (value as number) > max) {
    refuse(op, name, value, `a whole number${range(min, max)}`);
  }
  return value as number;
}

/** A number from `min` to `max` that is neither infinite nor NaN. */
export function finite(op: string, name: string, value: unknown, min = -Infinity, max = Infinity): number {
  if (!Number.isFinite(value) || (value as number) < min || (value as number) > max) {
    refuse(op, name, value, `a finite number${range(min, max)}`);
  }
  return value as number;
}

/** Any number, infinities and NaN included: what arithmetic is done with. */
export function number(op: string, name: string, value: unknown): number {
  if (typeof value !== "number") refuse(op, name, value, "a number");
  return value;
}

/** true or false. */
export function flag(op: string, name: string, value: unknown): boolean {
  if (typeof value !== "boolean") refuse(op, name, value, "true or false");
  return value;
}

/** A list as shapes are shown; anything else as it is. */
export const listed = (value: unknown): string =>
  Array.isArray(value) ? `[${value.slice(0, 12).map(show)}${value.length > 12 ? ",…" : ""}]` : show(value);

/** Whether this is a list of `count` whole numbers of at least `min`. */
export function integers(value: unknown, count: number, min: number): value is readonly number[] {
  return Array.isArray(value) && value.length === count && [...value].every((v) => Number.isSafeInteger(v) && v >= min);
}

/** A text. */
export function text(op: string, name: string, value: unknown): string {
  if (typeof value !== "string") refuse(op, name, value, "a text");
  return value;
}

/** The path of a file or folder. */
export function path(op: string, name: string, value: unknown): string {
  if (typeof value !== "string" || value === "" || value.includes("\0")) refuse(op, name, value, "a path");
  return value;
}

/** An object whose properties are looked at next. */
export function object<T>(op: string, name: string, value: T): T {
  if (value === null || typeof value !== "object") refuse(op, name, value, "an object");
  return value;
}

/** A function to call. */
export function callable(op: string, name: string, value: unknown): void {
  if (typeof value !== "function") refuse(op, name, value, "a function");
}

/** A list. */
export function list<T>(op: string, name: string, value: readonly T[]): readonly T[] {
  if (!Array.isArray(value)) refuse(op, name, value, "an array");
  return value;
}

/** Names that other libraries have for dtypes. */
const SPELLINGS: Readonly<Record<string, string>> = {
  float: "f32",
  float32: "f32",
  fp32: "f32",
  bfloat16: "bf16",
  int: "i32",
  int32: "i32",
  uint8: "u8",
  byte: "u8",
};

function nearest(word: unknown, names: readonly string[]): string | undefined {
  if (typeof word !== "string" || word === "") return undefined;
  const other = Object.hasOwn(SPELLINGS, word) ? SPELLINGS[word] : undefined;
  if (other !== undefined && names.includes(other)) return other;
  return closest(word, names) ?? names.find((name) => name.startsWith(word));
}

/** What a name stands for in a table. Names that every object has, such as toString, count as unknown. */
export function choice<T>(op: string, name: string, value: unknown, table: Readonly<Record<string, T>>): T {
  if (typeof value === "string" && Object.hasOwn(table, value)) return table[value];
  const names = Object.keys(table);
  const near = nearest(value, names);
  const hint = near === undefined ? "" : `; did you mean ${near}?`;
  refuse(op, name, value, `one of ${names.join(", ")}${hint}`);
}

/** Options by name: an object with none but these. */
export function checkOptions(op: string, value: unknown, names: readonly string[]): void {
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    refuse(op, "options", value, `an object of ${names.join(", ")}`);
  }
  for (const key of Object.keys(value)) {
    check(names.includes(key), "invalid_argument", () => {
      const near = closest(key, names);
      return `[${op}] unknown option ${JSON.stringify(key.slice(0, LONGEST))}${near ? `, did you mean ${near}?` : `, expected ${names.join(", ")}`}`;
    });
  }
}

/** The most dimensions that a tensor may have; LTX_MAX_DIMS in native/runtime/backend.h. */
export const MAX_DIMS = 8;

/**
 * A shape: at most {@link MAX_DIMS} whole numbers that are not negative, and whose product (zeros left aside, so that no
 * part of it is larger) can be counted.
 */
export function checkShape(op: string, shape: unknown): asserts shape is readonly number[] {
  const fits =
    Array.isArray(shape) && shape.length <= MAX_DIMS && [...shape].every((d) => Number.isSafeInteger(d) && d >= 0);
  check(fits, "invalid_argument", () => {
    return `[${op}] shape ${listed(shape)} is not a list of at most ${MAX_DIMS} non-negative integers`;
  });
  let product = 1;
  for (const d of shape) product *= d || 1;
  check(product * 4 <= Number.MAX_SAFE_INTEGER, "invalid_argument", () => {
    return `[${op}] shape [${shape}] has more elements than memory can be counted for`;
  });
}
