/** Positions of latent tokens: rotary tables, and the sine-cosine table of the absolute variant. */
import { checkShape, finite, integer } from "../../arguments.js";
import { check } from "../../errors.js";
import { Turns } from "../../formats/turns.js";
import { sliceFirst } from "../../ops/index.js";
import { type Device, empty, keep, launch, scope, Tensor } from "../../tensor/index.js";

/** How the frequencies are spread between 1 and theta. The transformer uses `exp`. */
export type RopeSpacing = "exp" | "exp_2" | "linear" | "sqrt";

export interface RopeOptions {
  /** The full inner width D; all heads together share one table. */
  dim: number;
  theta: number;
  /** What a position is divided by, along (frames, height, width). */
  maxPos: readonly [number, number, number];
  spacing?: RopeSpacing;
  /**
   * In which type angles are computed; f64 unless given. They reach theta·π/2, where float32 has lost three digits: the
   * official models were trained with what that leaves, so their tables are rounded alike.
   */
  angles?: "f32" | "f64";
}

/** A grid of latent tokens: (frames, height, width). */
export type Grid = readonly [number, number, number];

/** Cosines and sines (L, D) of one grid, on a device. */
export interface RopeTables {
  cos: Tensor;
  sin: Tensor;
}

/** Where tokens are along (frames, height, width): three lists of L. */
export type Positions = readonly [ArrayLike<number>, ArrayLike<number>, ArrayLike<number>];

/** A hundred times as many as the longest videos have. */
const MAX_TOKENS = 2 ** 24;

/** The index along (frames, height, width) of every token, width fastest. */
export function gridPositions(grid: Grid): [Float64Array, Float64Array, Float64Array] {
  checkShape("rope", grid);
  const tokens = grid.reduce((n, d) => n * d, 1);
  check(grid.length === 3 && tokens <= MAX_TOKENS, "invalid_argument", () => {
    return `[rope] the grid [${grid}] is not three sizes of at most ${MAX_TOKENS} tokens in all`;
  });
  const [frames, height, width] = grid;
  const length = frames * height * width;
  return [
    Float64Array.from({ length }, (_, i) => Math.floor(i / (height * width))),
    Float64Array.from({ length }, (_, i) => Math.floor(i / width) % height),
    Float64Array.from({ length }, (_, i) => i % width),
  ];
}

/** What each step of a computation in the options' type rounds to. */
const rounding = ({ angles }: RopeOptions): ((value: number) => number) =>
  angles === "f32" ? Math.fround : (value) => value;

/** The D/6 angular frequencies. */
export function ropeFrequencies(options: RopeOptions): Float64Array {
  const { dim, theta, spacing = "exp" } = options;
  integer("rope", "dim", dim, 0, 2 ** 24);
  finite("rope", "theta", theta);
  for (const size of options.maxPos) finite("rope", "maxPos", size);
  const round = rounding(options);
  const count = Math.floor(dim / 6);
  const step = count > 1 ? round(1 / (count - 1)) : 0;
  return Float64Array.from({ length: count }, (_, i) => {
    // Counted from the nearer end, as the reference's linspace does: in float32 the other way rounds otherwise.
    const part = i < count / 2 ? round(i * step) : round(1 - (count - 1 - i) * step);
    const spread = {
      exp: () => theta ** part,
      exp_2: () => theta ** ((-6 * i) / dim),
      linear: () => 1 + part * (theta - 1),
      sqrt: () => Math.sqrt(1 + part * (theta * theta - 1)),
    };
    return round(round(round(spread[spacing]()) * round(Math.PI)) / 2);
  });
}

/** The rotary tables' rows, token by token; where tokens share a position along an axis its angles are computed once. */
class RopeRows {
  private readonly still: number;
  /** By position, along each axis: cosine and sine of every frequency. */
  private readonly angles: Map<number, { cos: Float32Array; sin: Float32Array }>[] = [new Map(), new Map(), new Map()];
  private readonly frequencies: Float64Array;

  constructor(
    private readonly positions: Positions,
    private readonly options: RopeOptions,
  ) {
    const { dim } = options;
    check(Number.isInteger(dim) && dim >= 6 && dim % 2 === 0, "invalid_argument", () => {
      return `[rope] the width must be an even number from 6, got ${dim}`;
    });
    this.still = dim % 6;
    this.frequencies = ropeFrequencies(options);
  }

  get length(): number {
    return this.positions[0].length;
  }

  /** Writes the row of a token into both tables, which are zeros there, at `row`. */
  write(token: number, cos: Float32Array, sin: Float32Array, row: number): void {
    const { still, frequencies, positions } = this;
    cos.fill(1, row, row + still);
    for (let axis = 0; axis < 3; axis++) {
      const own = this.at(axis, positions[axis][token]);
      for (let i = 0, at = row + still + 2 * axis; i < frequencies.length; i++, at += 6) {
        cos[at] = cos[at + 1] = own.cos[i];
        sin[at] = sin[at + 1] = own.sin[i];
      }
    }
  }

  private at(axis: number, position: number): { cos: Float32Array; sin: Float32Array } {
    let own = this.angles[axis].get(position);
    if (!own) {
      const { maxPos, spacing = "exp" } = this.options;
      const round = rounding(this.options);
      const fraction = round(round(position) / maxPos[axis]);
      const place = spacing === "exp_2" ? fraction : round(2 * fraction - 1);
      const angles = this.frequencies.map((frequency) => round(frequency * place));
      own = { cos: Float32Array.from(angles, Math.cos), sin: Float32Array.from(angles, Math.sin) };
      this.angles[axis].set(position, own);
    }
    return own;
  }
}

/**
 * The rotary tables of tokens at `positions` (three lists of L, along frames, height and width): cos and sin, L·D values
 * each. Channel pair p turns with frequency ⌊p/3⌋ of axis p mod 3; the first D mod 6 channels stay as they are.
 */
export function ropeTables(positions: Positions, options: RopeOptions): { cos: Float32Array; sin: Float32Array } {
  const rows = new RopeRows(positions, options);
  const { dim } = options;
  const [cos, sin] = [new Float32Array(rows.length * dim), new Float32Array(rows.length * dim)];
  for (let token = 0; token < rows.length; token++) rows.write(token, cos, sin, token * dim);
  return { cos, sin };
}

/**
 * The absolute embedding (L, dim): sine and cosine features of the width, height and frame index, a third each. The order
 * is that of the weights that the reference trains on square latents; other shapes, which it scrambles, follow the same.
 */
export function absolutePositions(grid: Grid, dim: number): Float32Array {
  check(dim % 6 === 0, "config", () => `[position embedding] the width ${dim} must be a multiple of 6`);
  const [frames, rows, columns] = gridPositions(grid);
  const part = dim / 3;
  const half = part / 2;
  const table = new Float32Array(frames.length * dim);
  for (const [third, positions] of [columns, rows, frames].entries()) {
    for (let token = 0; token < positions.length; token++) {
      const at = token * dim + third * part;
      for (let i = 0; i < half; i++) {
        const angle = positions[token] * 10000 ** (-i / half);
        table[at + i] = Math.sin(angle);
        table[at + half + i] = Math.cos(angle);
      }
    }
  }
  return table;
}

/**
 * What was made for a grid, kept for the next call: a model meets few grids, and a table costs more than a step's launch.
 * The oldest entry goes when `limit` is reached; a tape that still needs it holds it.
 */
export class GridCache<T extends Record<string, Tensor>> {
  private readonly entries = new Map<string, T>();

  constructor(
    private readonly make: (grid: Grid, device: Device) => T,
    private readonly limit = 8,
  ) {}

  get(grid: Grid, device: Device): T {
    const key = `${device.name}:${grid.join("x")}`;
    let entry = this.entries.get(key);
    if (!entry) {
      entry = this.make(grid, device);
      for (const tensor of Object.values(entry)) keep(tensor);
      const oldest = this.entries.keys().next();
      if (this.entries.size >= this.limit && !oldest.done) this.drop(oldest.value);
      this.entries.set(key, entry);
    }
    return entry;
  }

  dispose(): void {
    for (const key of [...this.entries.keys()]) this.drop(key);
  }

  private drop(key: string): void {
    for (const tensor of Object.values(this.entries.get(key) ?? {})) tensor.dispose();
    this.entries.delete(key);
  }
}

/** Values of a table that are made at a time. */
const PART = 2 ** 18;

/**
 * {@link ropeTables} as tensors, the caller's. They are made in parts, between which the event loop has its turn, and
 * which are all that the host holds of them.
 * @throws LtxError `aborted`
 */
export async function prepareRope(
  positions: Positions,
  options: RopeOptions,
  device: Device,
  signal?: AbortSignal,
): Promise<RopeTables> {
  const rows = new RopeRows(positions, options);
  const { dim } = options;
  const turns = new Turns("[rope] making the tables", signal);
  const some = Math.max(1, Math.floor(PART / dim));
  const tables: Tensor[] = [];
  try {
    for (const _ of ["cos", "sin"]) {
      tables.push(keep(scope(() => empty([rows.length, dim], { device, group: "parameters" }))));
    }
    for (let first = 0; first < rows.length; first += some) {
      const count = Math.min(some, rows.length - first);
      const parts = tables.map(() => new Float32Array(count * dim));
      for (let i = 0; i < count; i++) {
        rows.write(first + i, parts[0], parts[1], i * dim);
        if (turns.due) await turns.next();
      }
      scope(() => {
        for (const [i, part] of parts.entries()) {
          const values = Tensor.from(part, [count, dim], { device });
          launch("cast", [values, sliceFirst(tables[i], first, count)], [1, 0]);
        }
      });
    }
    return { cos: tables[0], sin: tables[1] };
  } catch (error) {
    for (const table of tables) table.dispose();
    throw error;
  }
}

/** {@link ropeTables} as tensors, at once: for short sequences. */
export function ropeAt(positions: Positions, options: RopeOptions, device: Device): { cos: Tensor; sin: Tensor } {
  const { cos, sin } = ropeTables(positions, options);
  const shape = [positions[0].length, options.dim];
  return {
    cos: Tensor.from(cos, shape, { device, group: "parameters" }),
    sin: Tensor.from(sin, shape, { device, group: "parameters" }),
  };
}

/** Rotary tables by grid. */
export function ropeCache(options: RopeOptions): GridCache<{ cos: Tensor; sin: Tensor }> {
  return new GridCache((grid, device) => ropeAt(gridPositions(grid), options, device));
}
