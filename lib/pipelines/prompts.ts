import { integer, object } from "../arguments.js";
import type { DataConfig } from "../config/index.js";
import { promptFor } from "../data/index.js";
import { PhiloxRandom } from "../data/philox.js";

const PROMPT_STREAM = 0x4556414c;

/**
 * Prompts as the data set has them, for digits drawn at random: "three and 7", each digit by its name or its figure.
 * A pure function of its arguments.
 */
export function drawPrompts(
  data: Pick<DataConfig, "digits" | "num_classes">,
  count: number,
  seed: number,
): { labels: number[]; prompt: string }[] {
  const { digits, num_classes: classes } = object("prompts", "data", data);
  integer("prompts", "digits", digits, 1, 1000);
  integer("prompts", "num_classes", classes, 1, 10);
  integer("prompts", "count", count, 0, 2 ** 20);
  const random = new PhiloxRandom(seed, PROMPT_STREAM);
  return Array.from({ length: count }, (_, i) => {
    const labels = Array.from({ length: digits }, () => random.int(classes));
    return { labels, prompt: promptFor(labels, seed, i) };
  });
}
