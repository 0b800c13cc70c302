import { check } from "../../errors.js";
import { normal, type RandomKey, reshape, sliceLast } from "../../ops/index.js";
import type { Device, Tensor } from "../../tensor/index.js";

/** Where noise-injecting blocks take their fields (H, W) from. */
export interface NoiseSource {
  /** The field of the next place. */
  next(height: number, width: number, device: Device): Tensor;
}

/**
 * The noise fields (H, W) of a decoder's noise-injecting blocks, handed out in the order in which the blocks run: either
 * given, or drawn, the i-th with purpose `key.purpose + 65536·i`, so that every place has a stream of its own.
 */
export class NoisePlanes implements NoiseSource {
  private count = 0;

  constructor(private readonly source: readonly Tensor[] | RandomKey) {}

  /** How many were handed out by {@link next}. */
  get used(): number {
    return this.count;
  }

  /** @throws {LtxError} `invalid_argument` when the given planes are too few, `shape_mismatch` when one does not fit. */
  next(height: number, width: number, device: Device): Tensor {
    return this.at(this.count++, height, width, device);
  }

  /** The field of the i-th place; the same each time. @throws {LtxError} as {@link next} */
  at(i: number, height: number, width: number, device: Device): Tensor {
    const { source } = this;
    if (!isList(source)) return normal([height, width], { ...source, purpose: source.purpose + 65536 * i }, { device });
    const plane = source[i];
    check(plane, "invalid_argument", () => {
      return `[video vae] the decoder injects noise in more than the ${source.length} places that planes were given for`;
    });
    check(plane.shape.join() === `${height},${width}`, "shape_mismatch", () => {
      return `[video vae] noise plane ${i} expects [${height},${width}], got [${plane.shape}]`;
    });
    return plane;
  }
}

const isList = (source: readonly Tensor[] | RandomKey): source is readonly Tensor[] => Array.isArray(source);

/** Positions [from, to). */
export type Range = readonly [from: number, to: number];

/** The parts of noise fields that the blocks behind a certain one see when they run on a window of its positions. */
export class NoiseWindow implements NoiseSource {
  private used: number;

  /** @param size height and width of the positions that `rows` and `columns` are some of */
  constructor(
    private readonly planes: NoisePlanes,
    private readonly size: readonly [height: number, width: number],
    private readonly rows: Range,
    private readonly columns: Range,
  ) {
    this.used = planes.used;
  }

  next(height: number, width: number, device: Device): Tensor {
    const scale = height / (this.rows[1] - this.rows[0]);
    const [allRows, allColumns] = this.size.map((n) => n * scale);
    const plane = this.planes.at(this.used++, allRows, allColumns, device);
    const band = sliceLast(reshape(plane, [1, plane.size]), this.rows[0] * scale * allColumns, height * allColumns);
    return sliceLast(reshape(band, [height, allColumns]), this.columns[0] * scale, width);
  }
}
