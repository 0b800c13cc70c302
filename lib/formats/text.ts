/** sharp, and text in images with fonts of our own: it looks the same everywhere, also on a machine without any font. */

import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { LtxError } from "../errors.js";

export type Sharp = typeof import("sharp");

/** For prose of any width, and for labels whose width is known beforehand. */
export const SANS = "DejaVu Sans";
export const MONO = "DejaVu Sans Mono";
/** Width of every character of {@link MONO}, as a part of the font size. */
export const MONO_ADVANCE = 0.602;

const FONT_FILES = ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf"];
const SYSTEM_FONT_CONFIG = "/etc/fonts/fonts.conf";
const OWN_FONT_CONFIG = join(__dirname, "..", "..", "assets", "fonts.conf");

/**
 * sharp, loaded at its first use.
 * @throws LtxError `unavailable` when it can't be loaded: without its binaries, or without the memory for them
 */
export async function loadSharp(): Promise<Sharp> {
  try {
    return (await import("sharp")).default;
  } catch (cause) {
    const lines = (cause as Error).message.split("\n").filter((line) => line.trim() !== "");
    throw new LtxError(
      "unavailable",
      `[images] sharp, which reads and writes images, cannot be loaded: ${lines.slice(0, 2).join(" ")}. Install the ` +
        "package again on this machine (npm install), and see that the process may take enough memory (ulimit -v)",
      { cause },
    );
  }
}

let fonts: Promise<void> | undefined;

/** sharp, ready to draw text in {@link SANS} and {@link MONO}. @throws LtxError as {@link loadSharp} */
export async function loadSharpWithFonts(): Promise<Sharp> {
  const sharp = await loadSharp();
  fonts ??= registerFonts(sharp).catch((cause) => {
    fonts = undefined;
    throw new LtxError("unavailable", `[images] the fonts cannot be loaded: ${cause.message}`, { cause });
  });
  await fonts;
  return sharp;
}

async function registerFonts(sharp: Sharp): Promise<void> {
  const { FONTCONFIG_FILE, FONTCONFIG_PATH } = process.env;
  const bare = !FONTCONFIG_FILE && !FONTCONFIG_PATH && !existsSync(SYSTEM_FONT_CONFIG);
  // Without any configuration fontconfig complains on standard error. It reads this at its first use, below; after that
  // the environment is the program's own again.
  if (bare) process.env.FONTCONFIG_FILE = OWN_FONT_CONFIG;
  try {
    // Drawing a text with a font file registers that font for the process, so that SVG images find it by name too.
    const { resolve } = createRequire(__filename);
    for (const file of FONT_FILES) {
      const fontfile = resolve(`dejavu-fonts-ttf/ttf/${file}`);
      await sharp({ text: { text: "x", font: SANS, fontfile } })
        .raw()
        .toBuffer();
    }
  } finally {
    if (bare && process.env.FONTCONFIG_FILE === OWN_FONT_CONFIG) delete process.env.FONTCONFIG_FILE;
  }
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
