/** Which sizes the models can take, and how pictures of other sizes are brought to them. */
import { integer, object } from "../../arguments.js";
import type { Box, Padding } from "./clip.js";

export interface PaddedSize {
  readonly height: number;
  readonly width: number;
  readonly frames: number;
  /** What lies around the wanted picture. */
  readonly padding: Padding;
}

/** The next size that a model can take: sides up to multiples of `space`, frames up to `time` * k + 1. */
export function paddedSize(
  size: { height: number; width: number; frames: number },
  { space = 32, time = 8 } = {},
): PaddedSize {
  const { height, width, frames } = object("media", "size", size);
  for (const [name, value] of Object.entries({ height, width, frames, space, time })) integer("media", name, value, 1);
  const up = (value: number, step: number) => Math.ceil(value / step) * step;
  const [tall, wide] = [up(height, space), up(width, space)];
  const top = Math.floor((tall - height) / 2);
  const left = Math.floor((wide - width) / 2);
  const padding = { left, right: wide - width - left, top, bottom: tall - height - top };
  return { height: tall, width: wide, frames: up(frames - 1, time) + 1, padding };
}

/** How many frames of a sequence can condition a video: as many as fit behind `start`, cut to `time` * k + 1. */
export function conditioningFrames(start: number, available: number, frames: number, time = 8): number {
  for (const [name, value] of Object.entries({ start, available, frames })) integer("media", name, value, 0);
  integer("media", "time", time, 1);
  const fitting = Math.min(available, frames - start);
  return Math.floor((fitting - 1) / time) * time + 1;
}

/** The largest box of the target's proportions in the middle of a picture. */
export function centerBox(
  { height, width }: { height: number; width: number },
  target: { height: number; width: number },
): Box {
  const proportion = target.width / target.height;
  if (width / height > proportion) {
    const narrow = Math.max(1, Math.trunc(height * proportion));
    return { left: Math.floor((width - narrow) / 2), top: 0, height, width: narrow };
  }
  const low = Math.max(1, Math.trunc(width / proportion));
  return { left: 0, top: Math.floor((height - low) / 2), height: low, width };
}

/**
 * The first words of a prompt for a file's name: letters only, joined by hyphens, at most `letters` of them. Each letter
 * is made small by itself, as officially.
 */
export function promptWords(prompt: string, letters = 30): string {
  const kept = Array.from(prompt, (letter) => (/[\p{L}\s]/u.test(letter) ? letter.toLowerCase() : ""));
  const taken: string[] = [];
  let length = 0;
  for (const word of kept.join("").split(/\s+/).filter(Boolean)) {
    length += [...word].length;
    if (length > letters) break;
    taken.push(word);
  }
  return taken.join("-");
}
