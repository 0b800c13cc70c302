/** What stands beside a LoRA's matrices about their scale: PEFT's configuration, in a file or in the metadata. */
import { readFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { runInNewContext } from "node:vm";
import { check, LtxError } from "../../errors.js";
import { renameTransformerKey } from "./keys.js";

type Json = Record<string, unknown>;

/** How strongly one product of matrices is added: alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA. */
export interface Strength {
  alpha: number;
  rankStabilised: boolean;
}

/** By the official names of modules. */
export type StrengthOf = (module: string, rank: number) => Strength;

/** PEFT's own values where a configuration leaves them out. */
const PEFT_ALPHA = 8;
/** Long enough for any sensible pattern over all modules of a model. */
const PATTERN_MS = 500;

/** Settings of PEFT that change what the matrices mean; every other value than these is refused. */
const NEUTRAL: Readonly<Record<string, readonly unknown[]>> = {
  use_dora: [false],
  lora_bias: [false],
  bias: ["none"],
  modules_to_save: [],
  layer_replication: [],
  alora_invocation_tokens: [],
  trainable_token_indices: [],
  target_parameters: [],
  use_qalora: [false],
  use_bdlora: [false],
  arrow_config: [],
};
/** Ways to begin that change the base model's weights, which the matrices then don't fit any more. */
const CHANGES_BASE = /^(pissa|olora|corda|loftq|lora_ga)/;

/**
 * Reads a PEFT configuration.
 * @param where names it in messages
 * @throws LtxError `file_format` for values that can't be, `checkpoint` for settings that are not supported
 */
export function peftStrengths(config: Json, where: string, modules: readonly string[]): StrengthOf {
  const wrong = (key: string, expected: string) => () =>
    `[lora] ${where}: ${key} is ${JSON.stringify(config[key])}, expected ${expected}`;
  const { peft_type = "LORA", lora_alpha, r, use_rslora, init_lora_weights } = config;
  const supported = (ok: boolean, key: string) =>
    check(ok, "checkpoint", () => {
      return `[lora] ${where}: ${key} ${JSON.stringify(config[key])} is not supported: merge the adapter with PEFT, or train it without`;
    });
  supported(peft_type === "LORA", "peft_type");
  for (const [key, values] of Object.entries(NEUTRAL)) {
    const value = config[key] ?? null;
    const empty = value === null || value === false || (typeof value === "object" && Object.keys(value).length === 0);
    supported(empty || values.includes(value), key);
  }
  supported(!(typeof init_lora_weights === "string" && CHANGES_BASE.test(init_lora_weights)), "init_lora_weights");
  const number = (value: unknown): value is number => typeof value === "number" && Number.isFinite(value);
  check(lora_alpha == null || number(lora_alpha), "file_format", wrong("lora_alpha", "a number"));
  check(r == null || (Number.isSafeInteger(r) && Number(r) > 0), "file_format", wrong("r", "a whole number above 0"));
  check(use_rslora == null || typeof use_rslora === "boolean", "file_format", wrong("use_rslora", "true or false"));
  const [alphas, ranks] = ["alpha_pattern", "rank_pattern"].map((key) => {
    const value = config[key] ?? {};
    const fits = typeof value === "object" && !Array.isArray(value) && Object.values(value).every(number);
    check(fits, "file_format", wrong(key, "numbers by the names of modules"));
    return matched(value as Record<string, number>, modules, `${where}: ${key}`);
  });
  return (module, rank) => {
    const expected = ranks.get(module) ?? r;
    check(expected == null || expected === rank, "checkpoint", () => {
      return `[lora] ${where} gives "${module}" the rank ${expected}, its matrices have ${rank}: do the two belong together?`;
    });
    return { alpha: alphas.get(module) ?? lora_alpha ?? PEFT_ALPHA, rankStabilised: use_rslora === true };
  };
}

/**
 * What patterns give modules: regular expressions that must fit the name's end from one of its dots on, the first one
 * that does, as PEFT takes them. They may be written for either spelling of the names.
 */
function matched(
  patterns: Readonly<Record<string, number>>,
  modules: readonly string[],
  where: string,
): Map<string, number> {
  const result = new Map<string, number>();
  const entries = Object.entries(patterns);
  if (entries.length === 0) return result;
  const names = modules.map((module) => [module, diffusersModule(module)]);
  const sources = entries.map(([pattern]) => javascriptOf(pattern, where));
  for (const [i, found] of firstMatches(sources, names, where).entries()) {
    if (found >= 0) result.set(modules[i], entries[found][1]);
  }
  return result;
}

/** A regular expression of Python as one of JavaScript, that fits a whole name. */
function javascriptOf(pattern: string, where: string): string {
  const source = pattern
    .replace(/\(\?P</g, "(?<")
    .replace(/\\A/g, "^")
    .replace(/\\Z/g, "$");
  const whole = `^(?:.*\\.)?(?:${source})$`;
  try {
    check(!/\(\?[P#a-zA-Z(]/.test(source), "file_format", () => "a part that only Python knows");
    new RegExp(whole);
    return whole;
  } catch (cause) {
    throw new LtxError(
      "file_format",
      `[lora] ${where}: the pattern ${JSON.stringify(pattern)} can't be read (${(cause as Error).message}): expected a module's name or a regular expression`,
      { cause },
    );
  }
}

/**
 * For each list of names, the first pattern that fits one of them, or -1. A stranger's pattern may take for ever on a short
 * name; only a context of its own can be stopped.
 */
function firstMatches(patterns: readonly string[], names: readonly string[][], where: string): number[] {
  const code =
    "patterns.map((p) => new RegExp(p)).reduce((found, p, i) =>" +
    " found.map((f, n) => (f < 0 && names[n].some((name) => p.test(name)) ? i : f)), names.map(() => -1)).join()";
  try {
    const found: string = runInNewContext(code, { patterns, names }, { timeout: PATTERN_MS });
    return found.split(",").filter(Boolean).map(Number);
  } catch (cause) {
    throw new LtxError(
      "file_format",
      `[lora] ${where}: its patterns take longer than ${PATTERN_MS / 1000} s to compare with ${names.length} names: write them more simply`,
      { cause },
    );
  }
}

const diffusersModule = (module: string): string =>
  renameTransformerKey(`${module}.weight`, "diffusers").slice(0, -".weight".length);

/** Where diffusers keeps a LoRA's configuration in its metadata, its keys behind the model's name. */
export const ADAPTER_METADATA = "lora_adapter_metadata";
const MODEL_PREFIX = "transformer.";
/** Whose configurations may stand beside that of the transformer. */
const OTHER_MODELS = /^text_encoder(_\d)?\./;

/** The configuration of the transformer's LoRA in a file's metadata, if any. @throws LtxError `file_format` */
export function metadataConfig(path: string, metadata: Readonly<Record<string, string>>): Json | null {
  const text = metadata[ADAPTER_METADATA];
  if (text === undefined) return null;
  const config = parseObject(text, `${path}: its ${ADAPTER_METADATA}`);
  const keys = Object.keys(config);
  const strange = keys.find((key) => !key.startsWith(MODEL_PREFIX) && !OTHER_MODELS.test(key));
  check(strange === undefined, "file_format", () => {
    return `[lora] ${path}: its ${ADAPTER_METADATA} has "${strange}", expected names that begin with ${MODEL_PREFIX}`;
  });
  const own = keys.filter((key) => key.startsWith(MODEL_PREFIX));
  return own.length === 0 ? null : Object.fromEntries(own.map((key) => [key.slice(MODEL_PREFIX.length), config[key]]));
}

export const ADAPTER_CONFIG = "adapter_config.json";

/** Files of PEFT's, which go with a configuration beside them. */
export const isPeftFile = (path: string): boolean => /^adapter_model\.(safetensors|bin|pt)$/.test(basename(path));

/** The configuration that lies beside a PEFT file; null where there is none. @throws LtxError `file_format`, `io` */
export async function neighbourConfig(path: string): Promise<{ config: Json; where: string } | null> {
  const where = join(dirname(path), ADAPTER_CONFIG);
  const text = await readFile(where, "utf8").catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === "ENOENT") return null;
    throw new LtxError("io", `[lora] cannot read ${where}, which says how strong ${path} is: ${cause.message}`, {
      cause,
    });
  });
  return text === null ? null : { config: parseObject(text, where), where };
}

function parseObject(text: string, where: string): Json {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new LtxError("file_format", `[lora] ${where} is not JSON (${(cause as Error).message}): it is damaged`, {
      cause,
    });
  }
  check(typeof value === "object" && value !== null && !Array.isArray(value), "file_format", () => {
    return `[lora] ${where} is ${JSON.stringify(value).slice(0, 60)}, expected an object of PEFT's settings`;
  });
  return value as Json;
}
