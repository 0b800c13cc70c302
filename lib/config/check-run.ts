/** Runs' configurations that did not come out of a file's parser: a program's own, or one that was changed since. */
import { LtxError } from "../errors.js";
import { formatPath, type Problem, problemsOf } from "./problems.js";
import { type FlowRunConfig, type RunConfig, tokenGrid, type VaeRunConfig } from "./schema.js";
import { storedRun } from "./stored.js";
import {
  checkClip,
  checkLoss,
  checkSampling,
  checkTextEncoder,
  checkTransformer,
  checkVae,
  checkVaeData,
} from "./validate.js";

const MAX_LISTED = 5;

/**
 * Checks a configuration by the rules of the files that it could have come from: each key, and what they mean together.
 * @param op what stands in brackets before the messages
 * @throws LtxError `config`, naming the first keys that are wrong, and what they need
 */
export function checkRunConfig(config: RunConfig, op: string): void {
  // Its stages are runs of their own, which trainers are given one by one.
  if (config?.kind === "quickstart") return;
  const parsed = storedRun.safeParse(config);
  const problems = parsed.success ? togetherProblems(config) : problemsOf(parsed.error, config);
  if (problems.length === 0) return;
  const listed = problems.slice(0, MAX_LISTED).map(({ path, message }) => {
    return path.length > 0 ? `config.${formatPath(path)}: ${message}` : `config: ${message}`;
  });
  if (problems.length > MAX_LISTED) listed.push(`and ${problems.length - MAX_LISTED} more`);
  throw new LtxError("config", `[${op}] ${listed.join("; ")}`);
}

const sides = (section: string) => ({
  frames: [section, "frames"],
  height: [section, "height"],
  width: [section, "width"],
});

function togetherProblems(config: VaeRunConfig | FlowRunConfig): Problem[] {
  const { data } = config;
  if (config.kind === "vae") {
    const { vae, loss, compat } = config;
    return [
      ...checkVae(vae, ["vae"]),
      ...checkVaeData(vae, data, ["vae"], ["data"]),
      ...checkClip(vae, data, sides("data")),
      ...checkLoss(loss, data, ["loss"], compat),
    ];
  }
  const { latent_encoder: vae, transformer, text_encoder: text, sampling } = config;
  const problems: Problem[] = [];
  if (vae) {
    problems.push(...checkVae(vae, ["latent_encoder"]), ...checkVaeData(vae, data, ["latent_encoder"], ["data"]));
    problems.push(...checkClip(vae, data, sides("data")), ...checkClip(vae, sampling, sides("sampling")));
  }
  const grid = problems.length === 0 ? tokenGrid(vae, data) : undefined;
  return [
    ...problems,
    ...checkTransformer(transformer, text, grid, vae ? "the VAE's latents" : "the frames", ["transformer"]),
    ...checkTextEncoder(text, ["text_encoder"]),
    ...checkSampling(sampling, ["sampling"]),
  ];
}
