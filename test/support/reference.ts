/** Float64 references of every op, written as naive loops and plain compositions of small steps. */
export * as attention from "./reference/attention.js";
export * as elementwise from "./reference/elementwise.js";
export * as linear from "./reference/linear.js";
export * as norm from "./reference/norm.js";
export * as optimizer from "./reference/optimizer.js";
export * as perceptual from "./reference/perceptual.js";
export * as pool from "./reference/pool.js";
export * as posterior from "./reference/posterior.js";
export * as rearrange from "./reference/rearrange.js";
export * as wavelet from "./reference/wavelet.js";
