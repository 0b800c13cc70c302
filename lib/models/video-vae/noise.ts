import { check } from "../../errors.js";
import { normal, type RandomKey } from "../../ops/index.js";
import type { Device, Tensor } from "../../tensor/index.js";

/**
 * The noise fields (H, W) of a decoder's noise-injecting blocks, handed out in the order in which the blocks run: either
 * given, or drawn, the i-th with purpose `key.purpose + 65536·i`, so that every place has a stream of its own.
 */
export class NoisePlanes {
  private used = 0;

  constructor(private readonly source: readonly Tensor[] | RandomKey) {}

  /** @throws {LtxError} `invalid_argument` when the given planes are too few, `shape_mismatch` when one does not fit. */
  next(height: number, width: number, device: Device): Tensor {
    const { source } = this;
    const i = this.used++;
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
