/** One step of the official sampler, for a whole state or with a time of its own for each token. */
import { show } from "../../arguments.js";
import { check } from "../../errors.js";
import { axpby, mixRows, reshape } from "../../ops/index.js";
import { scope, Tensor } from "../../tensor/index.js";
import { nextTime } from "./schedule.js";

/** Numbers for each row of a state (B, L, C), sample by sample; one for each token stands for all samples. */
type PerToken = ArrayLike<number>;

/**
 * a·x + b·y with factors of their own for each token: x, y (B, L, C) f32.
 * @throws {LtxError} `shape_mismatch`
 */
export function mixTokens(x: Tensor, y: Tensor, a: PerToken | null, b: PerToken | null): Tensor {
  const [batch, length, channels] = x.shape;
  const rows = batch * length;
  return scope(() => {
    const factors = (values: PerToken | null): Tensor | null => {
      if (!values) return null;
      check(values.length === rows || values.length === length, "shape_mismatch", () => {
        return `[step] expects a number for each of ${length} tokens, or of ${rows} rows, got ${values.length}`;
      });
      const each = Float32Array.from({ length: rows }, (_, i) => values[i % values.length]);
      return Tensor.from(each, [rows], { device: x.device });
    };
    const flat = (state: Tensor) => reshape(state, [rows, channels]);
    return reshape(mixRows(flat(x), flat(y), factors(a), factors(b)), x.shape);
  });
}

function checkTimes(times: PerToken): void {
  check(Array.isArray(times) || ArrayBuffer.isView(times), "invalid_argument", () => {
    return `[step] times is ${show(times)}, expected an array`;
  });
}

/** (1 - t)·x0 + t·noise, t for each token. */
export function noiseTokens(x0: Tensor, noise: Tensor, times: PerToken): Tensor {
  checkTimes(times);
  return mixTokens(
    x0,
    noise,
    Float32Array.from(times, (t) => 1 - t),
    times,
  );
}

export interface StepOptions {
  /** The schedule, falling. */
  timesteps: readonly number[];
  /** The time of the state, or of each token. */
  time: number | PerToken;
  /** Makes the step stochastic: the state is taken all the way to 0, then mixed with this noise (B, L, C). */
  noise?: Tensor | null;
  /** Tokens that stay as they are: false for those. All take part unless given. */
  active?: readonly boolean[] | null;
}

/**
 * x (B, L, C) f32 after the step that the velocity v (noise - x0) leads along: x - (t - t')·v, t' being the time that the
 * schedule names after t.
 */
export function flowStep(x: Tensor, v: Tensor, { timesteps, time, noise = null, active = null }: StepOptions): Tensor {
  if (typeof time === "number" && !active) {
    const next = nextTime(timesteps, time);
    if (!noise) return axpby(1, x, next - time, v);
    return scope(() => axpby(1 - next, axpby(1, x, -time, v), next, noise));
  }
  if (typeof time !== "number") checkTimes(time);
  const times = typeof time === "number" ? new Float64Array(x.shape[1]).fill(time) : Float64Array.from(time);
  const stays = (i: number) => active !== null && !active[i % active.length];
  const next = times.map((t) => nextTime(timesteps, t));
  if (!noise) {
    return mixTokens(
      x,
      v,
      null,
      times.map((t, i) => (stays(i) ? 0 : next[i] - t)),
    );
  }
  return scope(() => {
    const clean = mixTokens(
      x,
      v,
      null,
      times.map((t, i) => (stays(i) ? 0 : -t)),
    );
    return noiseTokens(
      clean,
      noise,
      next.map((t, i) => (stays(i) ? 0 : t)),
    );
  });
}
