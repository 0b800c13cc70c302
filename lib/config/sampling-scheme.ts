import { z } from "zod";
import { count, whole } from "./fields.js";
import { section } from "./problems.js";

const params = section({
  video_length: count,
  num_observed_frames: whole.default(0),
  max_frames: count,
  step_size: count,
}).superRefine(({ max_frames, step_size }, context) => {
  if (step_size < max_frames) return;
  const message = `found ${step_size}, a window of ${max_frames} frames needs room for those that it observes, nearest ${max_frames - 1}`;
  context.addIssue({ code: "custom", path: ["step_size"], message });
});

/** The reference names a class of one of its modules; which module has changed over time, so only the class counts. */
const AUTOREGRESSIVE = /^(\w+\.)*autoregressive$/i;

const target = z.string().superRefine((name, context) => {
  if (AUTOREGRESSIVE.test(name)) return;
  const message =
    `found "${name}", supported is "autoregressive": schemes that observe frames on both sides of those they make ` +
    "need a model that was trained with frame masks";
  context.addIssue({ code: "custom", message });
});

/** A file of the reference's `--sampling_scheme_path`. */
export const samplingSchemeFile = section({ sampling_scheme: section({ target, params }) });

/**
 * How a video longer than the model's clip is drawn (Harvey et al., "Flexible Diffusion Modeling of Long Videos", 2022):
 * the first window of `max_frames` frames from nothing; each later one observes the last `max_frames - step_size` frames
 * and adds `step_size`, until there are `video_length`. `num_observed_frames` come from a given video.
 */
export type SamplingSchemeConfig = z.output<typeof params>;
