/** The diagonal Gaussian of the VAE: moments (B, …, 2C) hold C means, then C log-variances, clamped to [-30, 20]. */
import { check } from "../errors.js";
import { checkFloats, empty, launch, record, type Shape, type Tensor } from "../tensor/index.js";

function halved(op: string, moments: Tensor): Shape {
  checkFloats(op, { moments });
  check(moments.dims > 0, "shape_mismatch", () => `[${op}] moments expect (…,2C), got [${moments.shape}]`);
  const channels = moments.shape[moments.dims - 1];
  check(
    channels % 2 === 0,
    "shape_mismatch",
    () => `[${op}] moments need an even channel count, got [${moments.shape}]`,
  );
  return [...moments.shape.slice(0, -1), channels / 2];
}

const like = (x: Tensor): Tensor => empty(x.shape, { dtype: x.dtype, device: x.device });

/** latent_log_var "uniform": (…, C + 1) to (…, 2C), one log-variance for all channels. */
export function expandMoments(x: Tensor): Tensor {
  checkFloats("expand_moments", { x });
  check(x.dims > 0, "shape_mismatch", () => `[expand_moments] expects (…,C+1), got [${x.shape}]`);
  const channels = x.shape[x.dims - 1] - 1;
  check(
    channels >= 1,
    "shape_mismatch",
    () => `[expand_moments] needs at least one mean and the log-variance, got [${x.shape}]`,
  );
  const y = empty([...x.shape.slice(0, -1), 2 * channels], { dtype: x.dtype, device: x.device });
  launch("expand_moments", [x, y]);
  return record("expand_moments", y, [x], [], (grad) => {
    const dx = like(x);
    launch("expand_moments_backward", [grad, dx]);
    return [dx];
  });
}

/** mean + exp(logvar / 2) · noise; noise (B, …, C) is a constant. */
export function posteriorSample(moments: Tensor, noise: Tensor): Tensor {
  const shape = halved("posterior_sample", moments);
  checkFloats("posterior_sample", { moments, noise });
  check(
    noise.shape.join() === shape.join(),
    "shape_mismatch",
    () => `[posterior_sample] noise expects [${shape}], got [${noise.shape}]`,
  );
  const z = empty(shape, { dtype: moments.dtype, device: moments.device });
  launch("posterior_sample", [moments, noise, z]);
  return record("posterior_sample", z, [moments], [moments, noise], (grad) => {
    const dmoments = like(moments);
    launch("posterior_sample_backward", [moments, noise, grad, dmoments]);
    return [dmoments];
  });
}

/** 0.5 · Σ (mean² + var - 1 - logvar) of each sample: (B) f32. */
export function posteriorKl(moments: Tensor): Tensor {
  halved("posterior_kl", moments);
  return perSample("posterior_kl", moments);
}

/** The mean of each sample's clamped log-variances: (B) f32. */
export function posteriorLogvar(moments: Tensor): Tensor {
  halved("posterior_logvar", moments);
  return perSample("posterior_logvar", moments);
}

function perSample(op: string, moments: Tensor): Tensor {
  check(moments.dims > 1, "shape_mismatch", () => `[${op}] moments expect (B,…,2C), got [${moments.shape}]`);
  const y = empty([moments.shape[0]], { device: moments.device });
  launch(op, [moments, y]);
  return record(op, y, [moments], [moments], (grad) => {
    const dmoments = like(moments);
    launch(`${op}_backward`, [moments, grad, dmoments]);
    return [dmoments];
  });
}
