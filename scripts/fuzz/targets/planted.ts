/** Faults made on purpose, one of each class, by which the fuzzer itself is tested. They run only when asked for by name. */
import { openSync } from "node:fs";
import { LtxError } from "../../../lib/errors.js";
import { must, type Target } from "../target.js";

/** Of so many cases one has the fault; the others are accepted or refused. */
const RARE = 8;

/** Bytes that a case may take. Few, because a busy machine needs seconds to fill a gigabyte. */
const MAX_MEMORY = 2 ** 29;

const held: unknown[] = [];

const acts: Record<string, () => unknown> = {
  crash: () => process.kill(process.pid, "SIGSEGV"),
  exit: () => process.exit(3),
  heap: () => {
    for (;;) held.push(new Array(1e6).fill({}));
  },
  never: () => new Promise(() => {}),
  hang: () => {
    for (;;);
  },
  rejection: () => void Promise.reject(new Error("nobody awaits this")),
  callback: () => void setImmediate(() => (undefined as unknown as string).length),
  class: () => (null as unknown as string).length,
  garbage: () => must(1 + 1 === 3, () => "1 + 1 is 2, expected 3"),
  prototype: () => Object.assign(Object.prototype, { polluted: true }),
  memory: () => held.push(Buffer.alloc(MAX_MEMORY, 1)),
  handle: () => openSync(__filename, "r"),
};

export const planted: readonly Target[] = Object.entries(acts).map(([name, act]) => ({
  name: `planted-${name}`,
  about: "a fault made on purpose",
  weight: 1,
  maxMemory: MAX_MEMORY,
  async setup() {
    return async (random) => {
      if (random.below(RARE) === 0) await act();
      if (random.chance(0.5)) throw new LtxError("invalid_argument", "[planted] refused");
    };
  },
}));
