/** sharp, with fonts of our own: text in images looks the same everywhere, also on a machine without any font. */

import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

export type Sharp = typeof import("sharp");

/** For prose of any width, and for labels whose width is known beforehand. */
export const SANS = "DejaVu Sans";
export const MONO = "DejaVu Sans Mono";
/** Width of every character of {@link MONO}, as a part of the font size. */
export const MONO_ADVANCE = 0.602;

const FONT_FILES = ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf"];
const SYSTEM_FONT_CONFIG = "/etc/fonts/fonts.conf";
const OWN_FONT_CONFIG = join(__dirname, "..", "..", "assets", "fonts.conf");

let ready: Promise<Sharp> | undefined;

/** sharp, loaded at its first use, ready to draw text in {@link SANS} and {@link MONO}. */
export function loadSharp(): Promise<Sharp> {
  ready ??= prepare();
  return ready;
}

async function prepare(): Promise<Sharp> {
  const { FONTCONFIG_FILE, FONTCONFIG_PATH } = process.env;
  if (!FONTCONFIG_FILE && !FONTCONFIG_PATH && !existsSync(SYSTEM_FONT_CONFIG)) {
    // Without any configuration fontconfig complains on standard error. It reads this at its first use, below.
    process.env.FONTCONFIG_FILE = OWN_FONT_CONFIG;
  }
  const { default: sharp } = await import("sharp");
  // Drawing a text with a font file registers that font for the process, so that SVG images find it by name too.
  const { resolve } = createRequire(__filename);
  for (const file of FONT_FILES) {
    const fontfile = resolve(`dejavu-fonts-ttf/ttf/${file}`);
    await sharp({ text: { text: "x", font: SANS, fontfile } })
      .raw()
      .toBuffer();
  }
  return sharp;
}

/** `text` as the content of an XML element. */
export function escapeXml(text: string): string {
  return (
    text
      // biome-ignore lint/suspicious/noControlCharactersInRegex: XML cannot hold these characters in any form.
      .replace(/[\u0000-\u001f\ufffe\uffff\ud800-\udfff]/gu, " ")
      .replaceAll("&", "&amp;")
      .replaceAll("<", "&lt;")
      .replaceAll(">", "&gt;")
  );
}

/** `text` broken between words into lines of at most `columns` characters; after `maxLines`, cut with an ellipsis. */
export function wrapText(text: string, columns: number, maxLines: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(/\s+/).filter(Boolean)) {
    // A word longer than a line is broken inside.
    const pieces = word.match(new RegExp(`.{1,${columns}}`, "gsu")) ?? [];
    for (const piece of pieces) {
      const longer = line === "" ? piece : `${line} ${piece}`;
      if ([...longer].length <= columns) {
        line = longer;
      } else {
        lines.push(line);
        line = piece;
      }
    }
  }
  if (line !== "") lines.push(line);
  if (lines.length <= maxLines) return lines;
  const last = [...lines[maxLines - 1]].slice(0, columns - 1).join("");
  return [...lines.slice(0, maxLines - 1), `${last.trimEnd()}…`];
}
