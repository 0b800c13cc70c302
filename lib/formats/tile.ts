/** Many videos side by side in one, each with its text. */

import { extname } from "node:path";
import { check } from "../errors.js";
import { type Animation, type AnimationOptions, checkPixels, enlarge, saveAnimation, savePng } from "./images.js";
import { escapeXml, loadSharpWithFonts, MONO, MONO_ADVANCE, wrapText } from "./text.js";
import { Turns } from "./turns.js";

export interface TileOptions {
  /** Tiles in a row; default the nearest to a square. */
  columns?: number;
  /** A text for each video, such as its prompt, written below it. */
  labels?: readonly string[];
  /** Whole factor by which the videos are enlarged; default 1. The texts stay as they are. */
  scale?: number;
  /** Pixels around every tile; default 6. */
  padding?: number;
  /** Colour between the tiles, "#rrggbb"; default "#ffffff". */
  background?: string;
}

const FONT_SIZE = 13;
const LINE_HEIGHT = 16;
const CHARACTER_WIDTH = FONT_SIZE * MONO_ADVANCE;
const MAX_LINES = 3;
// Narrow tiles get a wider cell, so that a line has room for a few words: "three and seven".
const MIN_COLUMNS = 15;

/**
 * One RGB video of `videos`, which all have the same frames, height and width, laid out row by row.
 * @throws LtxError `invalid_argument` or `shape_mismatch` when the videos or options do not fit together
 */
export async function tileVideos(videos: readonly Animation[], options: TileOptions = {}): Promise<Animation> {
  const { columns = Math.ceil(Math.sqrt(videos.length)), labels = [], scale = 1 } = options;
  const { padding = 6, background = "#ffffff" } = options;
  checkVideos(videos);
  check(
    labels.length === 0 || labels.length === videos.length,
    "invalid_argument",
    () => `[tile] give a label for each of the ${videos.length} videos or none, got ${labels.length}`,
  );
  check(
    Number.isInteger(columns) && columns >= 1,
    "invalid_argument",
    () => `[tile] columns must be a positive whole number, got ${columns}`,
  );
  check(
    Number.isInteger(padding) && padding >= 0,
    "invalid_argument",
    () => `[tile] padding must be a whole number of pixels, got ${padding}`,
  );
  check(
    /^#[0-9a-f]{6}$/i.test(background),
    "invalid_argument",
    () => `[tile] background must look like "#ffffff", got ${JSON.stringify(background)}`,
  );

  const tiles: Animation[] = [];
  for (const video of videos) tiles.push(await enlarge(video, scale));
  const { frames, height, width } = tiles[0];
  const longest = Math.max(0, ...labels.map((label) => [...label].length));
  const lineLength = Math.max(Math.floor(width / CHARACTER_WIDTH), Math.min(longest, MIN_COLUMNS));
  const texts = labels.map((label) => wrapText(label, lineLength, MAX_LINES));
  const textHeight = Math.max(0, ...texts.map((lines) => lines.length)) * LINE_HEIGHT;
  const textWidth = Math.max(0, ...texts.flat().map((line) => [...line].length)) * CHARACTER_WIDTH;

  // A character's width more, so that neighbouring texts stay apart.
  const cellWidth = Math.max(width, Math.ceil(textWidth + CHARACTER_WIDTH * Math.sign(textWidth))) + padding;
  const cellHeight = height + textHeight + padding;
  const inRow = Math.min(columns, tiles.length);
  const sheet = {
    width: inRow * cellWidth + padding,
    height: Math.ceil(tiles.length / inRow) * cellHeight + padding,
  };
  const corner = (i: number): Corner => ({
    left: padding + (i % inRow) * cellWidth,
    top: padding + Math.floor(i / inRow) * cellHeight,
  });

  const still = await drawSheet(
    sheet,
    background,
    texts.map((lines, i) => ({ lines, left: corner(i).left, top: corner(i).top + height })),
  );
  const data = new Uint8Array(frames * still.length);
  const turns = new Turns("[tile] laying out frames");
  for (let frame = 0; frame < frames; frame++) {
    const page = data.subarray(frame * still.length, (frame + 1) * still.length);
    page.set(still);
    for (const [i, tile] of tiles.entries()) {
      paste(page, sheet.width, tile, frame, corner(i));
      if (turns.due) await turns.next();
    }
  }
  return { data, frames, ...sheet, channels: 3 };
}

/**
 * Writes `videos` as one tiled animation (.gif, .webp), or videos of a single frame as a tiled image (.png).
 * @throws LtxError as {@link tileVideos}, `saveAnimation` and `savePng`
 */
export async function saveGrid(
  path: string,
  videos: readonly Animation[],
  { fps, quality, ...tileOptions }: TileOptions & Omit<AnimationOptions, "scale"> = {},
): Promise<void> {
  const still = extname(path).toLowerCase() === ".png";
  check(
    !still || videos.every((video) => video.frames === 1),
    "invalid_argument",
    () => `[tile] ${path} can hold only single frames; write videos as .gif or .webp`,
  );
  const tiled = await tileVideos(videos, tileOptions);
  await (still ? savePng(path, tiled) : saveAnimation(path, tiled, { fps, quality }));
}

function checkVideos(videos: readonly Animation[]): void {
  check(videos.length > 0, "invalid_argument", () => "[tile] there are no videos to tile; give at least one");
  const size = ({ frames, height, width }: Animation) => `${frames} frames of ${width}x${height}`;
  for (const [i, video] of videos.entries()) {
    checkPixels(video, video.frames);
    check(
      size(video) === size(videos[0]),
      "shape_mismatch",
      () => `[tile] all videos must be of one size: the first has ${size(videos[0])}, number ${i} has ${size(video)}`,
    );
  }
}

interface Corner {
  left: number;
  top: number;
}

/** What does not move, the background and the texts: uint8 (height, width, 3). */
async function drawSheet(
  { width, height }: { width: number; height: number },
  background: string,
  texts: readonly (Corner & { lines: string[] })[],
): Promise<Uint8Array> {
  const [red, green, blue] = [1, 3, 5].map((at) => Number.parseInt(background.slice(at, at + 2), 16));
  // Rec. 709 luma tells on which side of grey the background lies.
  const color = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 127 ? "#111111" : "#eeeeee";
  const lines = texts.flatMap(({ lines, left, top }) =>
    lines.map((line, i) => `<text x="${left}" y="${top + (i + 1) * LINE_HEIGHT - 3}">${escapeXml(line)}</text>`),
  );
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}">` +
    `<rect width="100%" height="100%" fill="${background}"/>` +
    `<g font-family="${MONO}" font-size="${FONT_SIZE}" fill="${color}" xml:space="preserve">${lines.join("")}</g></svg>`;
  const sharp = await loadSharpWithFonts();
  return sharp(Buffer.from(svg), { limitInputPixels: false }).removeAlpha().toColourspace("srgb").raw().toBuffer();
}

/** Copies one frame of `tile`, grey or RGB, onto an RGB page. */
function paste(page: Uint8Array, pageWidth: number, tile: Animation, frame: number, { left, top }: Corner): void {
  const { data, height, width, channels } = tile;
  for (let y = 0; y < height; y++) {
    let from = (frame * height + y) * width * channels;
    let to = ((top + y) * pageWidth + left) * 3;
    for (let x = 0; x < width; x++, from += channels, to += 3) {
      page[to] = data[from];
      page[to + 1] = data[channels === 3 ? from + 1 : from];
      page[to + 2] = data[channels === 3 ? from + 2 : from];
    }
  }
}
