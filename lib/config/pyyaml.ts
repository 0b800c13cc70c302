/**
 * YAML as PyYAML reads it, with which the references' files are read: YAML 1.1 with a few differences. What PyYAML takes
 * for text but is a number in YAML 1.2 (`1e-4`) is a number here, as its writer meant.
 */
import type { ScalarTag, Tags } from "yaml";

/** Digits by 60, as in 1:30. */
const sexagesimal = (text: string): number => text.split(":").reduce((n, part) => 60 * n + Number(part), 0);

function signed(text: string, magnitude: (digits: string) => number): number {
  const digits = text.replace(/^[-+]/, "").replaceAll("_", "");
  return text.startsWith("-") ? -magnitude(digits) : magnitude(digits);
}

const scalar = (
  type: "bool" | "int" | "float" | "str",
  test: RegExp,
  resolve: (text: string) => unknown,
): ScalarTag => ({
  tag: `tag:yaml.org,2002:${type}`,
  default: true,
  test,
  resolve,
});

const TAGS: readonly ScalarTag[] = [
  scalar("bool", /^(?:yes|Yes|YES|on|On|ON)$/, () => true),
  scalar("bool", /^(?:no|No|NO|off|Off|OFF)$/, () => false),
  scalar("int", /^[-+]?0b[01_]+$/, (text) => signed(text, (digits) => Number.parseInt(digits.slice(2), 2))),
  scalar("int", /^[-+]?0x[0-9a-fA-F_]+$/, (text) => signed(text, (digits) => Number.parseInt(digits, 16))),
  scalar("int", /^[-+]?0[0-7_]+$/, (text) => signed(text, (digits) => Number.parseInt(digits, 8))),
  scalar("int", /^[-+]?[1-9][0-9_]*$/, (text) => signed(text, Number)),
  scalar("int", /^[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+$/, (text) => signed(text, sexagesimal)),
  scalar("float", /^[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?$/, (text) => signed(text, Number)),
  scalar("float", /^[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*$/, (text) => signed(text, sexagesimal)),
  // 08 is not octal, and no other number either.
  scalar("str", /^[-+]?0[0-9_]+$/, (text) => text),
];

/** Before those of YAML 1.2, the first whose pattern fits being taken. */
export const pyYamlTags = (tags: Tags): Tags => [...TAGS, ...tags];

/** A line on which a list or mapping in brackets begins, behind dashes and a key: the indentation, and all before it. */
const FLOW_START =
  /^( *(?:- +)*)(?:(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'#[\]{},&!|>][^#:]*?) *: +)?(?:[&!]\S+ +)*(?=[[{])/;
/** A line behind which text stands that is taken as it is. */
const BLOCK_TEXT = /(?:^|[:-] +)[|>][-+\d]*\s*(?:#.*)?$/;

/**
 * The same text with the further lines of lists and mappings in brackets indented deeper than their key, as YAML 1.2 asks
 * for and PyYAML doesn't. Lines keep their numbers.
 */
export function indentFlow(text: string): string {
  let depth = 0;
  let quote = "";
  let margin = "";
  let literal: number | undefined;
  return text
    .split("\n")
    .map((line) => {
      const further = depth > 0;
      let at = 0;
      if (!further) {
        const indent = line.search(/\S/);
        if (literal !== undefined && (indent < 0 || indent > literal)) return line;
        literal = BLOCK_TEXT.test(line) ? indent : undefined;
        const start = FLOW_START.exec(line);
        if (!start) return line;
        margin = " ".repeat(start[1].length + 1);
        at = start[0].length;
      }
      for (; at < line.length; at++) {
        const char = line[at];
        if (quote) {
          if (char === "\\" && quote === '"') at++;
          else if (char === quote) quote = "";
        } else if (char === "#" && /^\s?$/.test(line[at - 1] ?? "")) break;
        else if ((char === '"' || char === "'") && /[\s[{,:]/.test(line[at - 1] ?? " ")) quote = char;
        else if (char === "[" || char === "{") depth++;
        else if (char === "]" || char === "}") depth--;
        if (depth === 0) break;
      }
      return further && line.trim() !== "" ? margin + line : line;
    })
    .join("\n");
}
