import { readFile, stat } from "node:fs/promises";
import { LineCounter, parseDocument } from "yaml";
import type { z } from "zod";
import { integer } from "../arguments.js";
import { LtxError } from "../errors.js";
import { type FileKind, kindOfFile } from "../file-kind.js";
import { type PipelineConfig, pipelineFile } from "./official/pipeline.js";
import { formatPath, type Problem, problemsOf, safeParse, unknownKey } from "./problems.js";
import { indentFlow, pyYamlTags } from "./pyyaml.js";
import { type SamplingSchemeConfig, samplingSchemeFile } from "./sampling-scheme.js";
import {
  flowFile,
  quickstartFile,
  type RunConfig,
  resolveFlowRun,
  resolveQuickstart,
  resolveVaeRun,
  vaeFile,
} from "./schema.js";
import { resolveTransformer, type TransformerConfig, transformerParams } from "./transformer.js";
import { lossParams, type VaeConfig, type VaeLossConfig, vaeParams } from "./vae.js";

const MAX_FILE_BYTES = 1024 * 1024;
// Enough for any honest use of anchors; a file that unfolds further is an attack or a mistake.
const MAX_ALIASES = 100;
const MAX_LISTED = 20;

/**
 * Reads a YAML file of the reference or of this project, checks all of it and fills in the defaults.
 * @throws LtxError `config`, listing every problem with its line, or what keeps the file from being read
 */
export async function loadConfig(path: string): Promise<RunConfig> {
  return parseConfig(await readText(path), path);
}

async function readText(path: string): Promise<string> {
  let bytes: Buffer;
  try {
    const info = await stat(path);
    if (info.isDirectory()) throw fault(path, "is a folder, expected a YAML file");
    if (!info.isFile()) throw fault(path, "is not a regular file");
    const kind = await kindOfFile(path);
    // A text, or JSON, is left to the parser, which knows the line, unless it stands for something else.
    const readable = kind?.type === "json" || (kind?.type === "text" && !kind.remedy);
    if (kind && !readable) throw fault(path, notYaml(kind));
    if (info.size > MAX_FILE_BYTES) {
      throw fault(path, `has ${info.size} bytes, a configuration may have ${MAX_FILE_BYTES}`);
    }
    bytes = await readFile(path);
  } catch (cause) {
    if (cause instanceof LtxError) throw cause;
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "ENOENT") throw fault(path, "no such file", cause);
    throw fault(path, `cannot be read (${(cause as Error).message})`, cause);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw fault(path, "is not UTF-8 text", cause);
  }
}

const notYaml = ({ what, remedy }: FileKind) => `is ${what}, expected a YAML file${remedy ? `: ${remedy}` : ""}`;

/**
 * The configuration in `text`; `fileName` only stands in the messages.
 * @throws LtxError `config`, listing every problem with its line
 */
export function parseConfig(text: string, fileName: string): RunConfig {
  if (text.length > MAX_FILE_BYTES) {
    throw fault(fileName, `has ${text.length} characters, a configuration may have ${MAX_FILE_BYTES}`);
  }
  const { value, lineOf } = readYaml(text, fileName);
  const problems: Problem[] = [];
  const config = resolve(value, problems);
  if (problems.length > 0 || !config) throw report(fileName, problems, lineOf);
  return config;
}

/**
 * Reads the YAML file of a sampling scheme.
 * @throws LtxError `config`, listing every problem with its line, or what keeps the file from being read
 */
export async function loadSamplingScheme(path: string): Promise<SamplingSchemeConfig> {
  const { value, lineOf } = readYaml(await readText(path), path);
  const parsed = samplingSchemeFile.safeParse(value);
  if (!parsed.success) throw report(path, problemsOf(parsed.error, value), lineOf);
  return parsed.data.sampling_scheme.params;
}

/**
 * Reads the YAML file of an official release, checks all of it and fills in the defaults.
 * @param overrides keys that replace the file's
 * @throws LtxError `config`, listing every problem with its line, or what keeps the file from being read
 */
export async function loadPipelineConfig(
  path: string,
  overrides: Record<string, unknown> = {},
): Promise<PipelineConfig> {
  const file = readYaml(await readText(path), path);
  const value = withoutNulls({ ...file.value, ...overrides }) as Record<string, unknown>;
  const lineOf: LineOf = (at) => (Object.hasOwn(overrides, at[0]) ? undefined : file.lineOf(at));
  const parsed = pipelineFile.safeParse(value);
  if (!parsed.success) throw report(path, problemsOf(parsed.error, value), lineOf);
  return parsed.data;
}

/** In the official files null stands for a key that is not there. */
function withoutNulls(value: unknown): unknown {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  const kept = Object.entries(value).filter(([, entry]) => entry !== null);
  return Object.fromEntries(kept.map(([key, entry]) => [key, withoutNulls(entry)]));
}

function resolve(value: Record<string, unknown>, problems: Problem[]): RunConfig | undefined {
  const has = (key: string) => Object.hasOwn(value, key);
  const kinds = { vae: has("vae_config"), flow: has("diffusion"), quickstart: has("vae") || has("flow") };
  const present = Object.values(kinds).filter(Boolean).length;
  if (present !== 1) {
    const wanted = "a VAE file has vae_config, a diffusion file has diffusion, a quickstart has vae and flow";
    problems.push({
      path: [],
      message: `${present ? "mixes several kinds of file" : "kind of file not known"}: ${wanted}`,
    });
    const allowed = [...new Set([vaeFile, flowFile, quickstartFile].flatMap((file) => Object.keys(file.shape)))];
    for (const key of Object.keys(value)) {
      if (!allowed.includes(key)) problems.push({ path: [key], message: unknownKey(key, allowed) });
    }
    return undefined;
  }
  const parse = <Schema extends z.ZodType, Run>(schema: Schema, finish: (input: z.output<Schema>) => Run) => {
    const parsed = schema.safeParse(value);
    if (parsed.success) return finish(parsed.data);
    problems.push(...problemsOf(parsed.error, value));
    return undefined;
  };
  if (kinds.vae) return parse(vaeFile, (input) => resolveVaeRun(input, problems));
  if (kinds.flow) return parse(flowFile, (input) => resolveFlowRun(input, problems));
  return parse(quickstartFile, (input) => resolveQuickstart(input, problems));
}

type LineOf = (path: readonly PropertyKey[]) => number | undefined;

function readYaml(text: string, fileName: string): { value: Record<string, unknown>; lineOf: LineOf } {
  let lines = new LineCounter();
  let value: unknown;
  let document: ReturnType<typeof parseDocument>;
  try {
    document = parseYaml(text, lines);
    if (document.errors.some(({ code }) => code === "BAD_INDENT")) {
      const again = new LineCounter();
      const indented = parseYaml(indentFlow(text), again);
      if (indented.errors.length === 0) [document, lines] = [indented, again];
    }
    // A tag that YAML does not know leaves a warning and a value of another type than its writer meant.
    const faults = [...document.errors, ...document.warnings];
    if (faults.length > 0) {
      const messages = faults.map((e) => `line ${lines.linePos(e.pos[0]).line}: ${yamlMessage(e)}`);
      throw fault(fileName, [...new Set(messages)].slice(0, MAX_LISTED).join("; "));
    }
    value = document.toJS({ maxAliasCount: MAX_ALIASES });
  } catch (cause) {
    if (cause instanceof LtxError) throw cause;
    // Nesting without end overflows the parser's stack, aliases without end its counter.
    const why =
      cause instanceof RangeError ? "is nested too deeply" : `is not valid YAML (${(cause as Error).message})`;
    throw fault(fileName, why, cause);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw fault(fileName, `expected a mapping of sections, found ${describe(value)}`);
  }
  return { value: value as Record<string, unknown>, lineOf: (path) => lineAt(document, lines, path) };
}

const parseYaml = (text: string, lineCounter: LineCounter) =>
  parseDocument(text, {
    lineCounter,
    prettyErrors: false,
    uniqueKeys: true,
    logLevel: "error",
    merge: true,
    customTags: pyYamlTags,
  });

const describe = (value: unknown) =>
  value === null ? "nothing" : Array.isArray(value) ? "a list" : `a ${typeof value}`;

function yamlMessage({ code, message }: { code: string; message: string }): string {
  if (code === "DUPLICATE_KEY") return "a key is written twice in one section";
  if (code === "MULTIPLE_DOCS") return "a second document starts, a configuration is one";
  // The parser reports its own overflowing stack like this.
  return message.includes("call stack") ? "nested too deeply" : message.split("\n")[0];
}

/** The line of the value at `path`, or of the nearest section around it. */
function lineAt(document: ReturnType<typeof parseDocument>, lines: LineCounter, path: readonly PropertyKey[]) {
  for (let depth = path.length; depth > 0; depth--) {
    let node: unknown;
    try {
      node = document.getIn(path.slice(0, depth), true);
    } catch {
      continue; // The path leads through an alias.
    }
    const range = (node as { range?: [number, number, number] } | undefined)?.range;
    if (range) return lines.linePos(range[0]).line;
  }
  return undefined;
}

function report(fileName: string, problems: readonly Problem[], lineOf: LineOf): LtxError {
  const lines = problems.slice(0, MAX_LISTED).map(({ path, message }) => {
    const line = lineOf(path);
    const where = path.length > 0 ? `${formatPath(path)}: ` : "";
    return `${line === undefined ? "" : `line ${line}: `}${where}${message}`;
  });
  if (problems.length > MAX_LISTED) lines.push(`and ${problems.length - MAX_LISTED} more`);
  if (lines.length === 1) return fault(fileName, lines[0]);
  return fault(fileName, `${problems.length} problems\n${lines.map((line) => `  - ${line}`).join("\n")}`);
}

const fault = (fileName: string, message: string, cause?: unknown) =>
  new LtxError("config", `[config] ${fileName}: ${message}`, { cause });

function parseParams<Schema extends z.ZodType>(schema: Schema, value: unknown, source: string): z.output<Schema> {
  const parsed = safeParse(schema, value, source);
  if (parsed.success) return parsed.data;
  throw report(source, problemsOf(parsed.error, value), () => undefined);
}

/**
 * The parameters of a VAE that stand alone, as in a checkpoint's metadata.
 * @param source stands in the messages
 * @throws LtxError `config`
 */
export const parseVaeParams = (value: unknown, source: string): VaeConfig => parseParams(vaeParams, value, source);

/** The same for a transformer. @throws LtxError `config` */
export const parseTransformerParams = (value: unknown, source: string): TransformerConfig =>
  resolveTransformer(parseParams(transformerParams, value, source));

/** The same for a VAE's loss over videos of `channels` channels. @throws LtxError `config` */
export function parseLossParams(value: unknown, source: string, channels: number): VaeLossConfig {
  integer("config", "channels", channels, 1);
  const loss = parseParams(lossParams, value, source);
  return { ...loss, disc_in_channels: loss.disc_in_channels ?? channels };
}
