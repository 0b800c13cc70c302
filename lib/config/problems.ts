import { z } from "zod";
import { LtxError } from "../errors.js";
import { closest } from "../suggest.js";

/** One fault in a configuration: where it is, from the root of the file, and what to do about it. */
export interface Problem {
  readonly path: readonly PropertyKey[];
  readonly message: string;
}

/**
 * A mapping with exactly these keys. Keys outside `shape` are problems with a suggestion; `renamed` gives the present
 * name of keys that older files of the reference use.
 */
export function section<Shape extends z.ZodRawShape>(shape: Shape, renamed: Record<string, string> = {}) {
  const allowed = Object.keys(shape);
  return z.strictObject(shape, {
    // One line a key, in the order of `issue.keys`: `problemsOf` takes them apart again.
    error: (issue) =>
      issue.code === "unrecognized_keys"
        ? issue.keys.map((key) => unknownKey(key, allowed, renamed)).join("\n")
        : undefined,
  });
}

/** What to say about a key that is not among `allowed`. */
export function unknownKey(key: string, allowed: readonly string[], renamed: Record<string, string> = {}): string {
  if (Object.hasOwn(renamed, key)) return `this key is now called "${renamed[key]}"`;
  const near = closest(key, allowed);
  return near ? `unknown key, did you mean "${near}"?` : `unknown key, allowed here: ${allowed.join(", ")}`;
}

/** What zod makes of a program's own object, whose getters may throw. @throws LtxError `config` when they do */
export function safeParse<Schema extends z.ZodType>(schema: Schema, value: unknown, source: string) {
  try {
    return schema.safeParse(value);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new LtxError("config", `[config] ${source}: cannot be read: ${reason}`, { cause });
  }
}

/** The faults that zod found in `input`, in this project's words. */
export function problemsOf(error: z.ZodError, input: unknown): Problem[] {
  return error.issues.flatMap((issue) => explain(issue, input, []));
}

type Issue = z.core.$ZodIssue;

function explain(issue: Issue, input: unknown, parent: readonly PropertyKey[]): Problem[] {
  const path = [...parent, ...issue.path];
  const value = issue.path.reduce(childOf, input);
  switch (issue.code) {
    case "unrecognized_keys": {
      const lines = issue.message.split("\n");
      return issue.keys.map((key, i) => ({ path: [...path, key], message: lines[i] }));
    }
    case "invalid_union": {
      // A union told apart by a key says itself which values that key may have.
      if (issue.errors.length === 0) return [{ path, message: issue.message }];
      // The branch whose type fits says precisely what is wrong inside; with none, name every type that would fit.
      const fitting = issue.errors.find((branch) => !branch.some(isWrongType));
      if (fitting) return fitting.flatMap((inner) => explain(inner as Issue, value, path));
      const expected = issue.errors.flatMap((branch) => branch.filter(isWrongType).map((e) => expectation(e, value)));
      return [{ path, message: `${found(value)}, expected ${[...new Set(expected)].join(" or ")}` }];
    }
    case "custom":
      return [{ path, message: issue.message }];
    default:
      return [{ path, message: `${found(value)}, ${needs(issue, value)}` }];
  }
}

const isWrongType = (issue: Issue) => issue.code === "invalid_type" && issue.path.length === 0;

const childOf = (value: unknown, key: PropertyKey): unknown =>
  typeof value === "object" && value !== null && Object.hasOwn(value, key)
    ? (value as Record<PropertyKey, unknown>)[key]
    : undefined;

const TYPE_NAMES: Record<string, string> = {
  number: "a number",
  int: "a whole number",
  string: "a text",
  boolean: "true or false",
  null: "null",
  array: "a list",
  tuple: "a list",
  object: "a section of keys",
  record: "a section of keys",
};

function expectation(issue: Issue, value: unknown): string {
  if (issue.code !== "invalid_type") return issue.message;
  // NaN and infinity are numbers to their writer.
  if (issue.expected === "number" && typeof value === "number") return "a finite number";
  if (issue.expected === "string" && (typeof value === "number" || typeof value === "boolean"))
    return "a text (in quotes)";
  return TYPE_NAMES[issue.expected] ?? issue.expected;
}

function needs(issue: Issue, value: unknown): string {
  switch (issue.code) {
    case "invalid_type":
      return `expected ${expectation(issue, value)}`;
    case "too_small":
      if (issue.origin === "array") return `expected ${entries(issue)} or more`;
      if (issue.origin === "string") return "expected a text that is not empty";
      return issue.inclusive === false
        ? `expected more than ${issue.minimum}`
        : `expected at least ${issue.minimum}, nearest ${issue.minimum}`;
    case "too_big":
      if (issue.origin === "array") return `expected ${entries(issue)} or fewer`;
      return issue.inclusive === false
        ? `expected less than ${issue.maximum}`
        : `expected at most ${issue.maximum}, nearest ${issue.maximum}`;
    case "invalid_value": {
      const values = issue.values.map((v) => (typeof v === "string" ? v : JSON.stringify(v)));
      return values.length === 1 ? `only ${values[0]} is supported` : oneOf(value, values);
    }
    default:
      return issue.message;
  }
}

function oneOf(value: unknown, values: readonly string[]): string {
  const near = typeof value === "string" ? closest(value, values) : undefined;
  return `expected one of ${values.join(", ")}${near ? `; did you mean ${near}?` : ""}`;
}

/** The whole message for a value that is none of `values`. */
export const notOneOf = (value: unknown, values: readonly string[]): string =>
  `${found(value)}, ${oneOf(value, values)}`;

function entries(issue: { minimum?: unknown; maximum?: unknown }): string {
  const count = Number(issue.minimum ?? issue.maximum);
  return `${count} ${count === 1 ? "entry" : "entries"}`;
}

/** `found 3`, `found "x" (text)`, or that nothing was found. */
function found(value: unknown): string {
  if (value === undefined) return "missing";
  if (typeof value === "number" || typeof value === "boolean" || value === null) return `found ${value}`;
  if (typeof value === "string") return `found ${JSON.stringify(clip(value))} (text)`;
  return Array.isArray(value) ? `found a list of ${value.length}` : "found a section of keys";
}

const clip = (text: string) => (text.length > 60 ? `${text.slice(0, 57)}...` : text);

/** `diffusion.score_network.params.num_layers`, `vae_config.params.encoder_blocks[2][0]`. */
export function formatPath(path: readonly PropertyKey[]): string {
  return path
    .map((key, i) => (typeof key === "number" ? `[${key}]` : `${i ? "." : ""}${clip(printable(String(key)))}`))
    .join("");
}

// A key is the writer's own text: control characters would garble the terminal that shows the message.
const printable = (text: string) => JSON.stringify(text).slice(1, -1);
