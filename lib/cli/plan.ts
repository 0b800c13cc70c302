import { Command } from "commander";
import { checkFits, gib, type MemoryPlan, planGeneration } from "../pipelines/release/plan.js";
import { standardOutput } from "./output.js";
import { offloaded, overridesOf, type ReleaseFlags, releaseOptions } from "./release-options.js";

export function planCommand(): Command {
  const command = new Command("plan").description(
    "what a release takes in memory for a video's size, told before anything is loaded; fails when it can't fit",
  );
  return releaseOptions(command).action(async (flags: ReleaseFlags, self: Command) => {
    self.setOptionValue("exitCode", await runPlan(flags));
  });
}

async function runPlan(flags: ReleaseFlags): Promise<number> {
  const output = standardOutput(flags.json === true);
  const { pipelineConfig, height, width, numFrames, device } = flags;
  const plan = await planGeneration({
    pipelineConfig,
    overrides: await overridesOf(flags),
    size: { height, width, numFrames },
    device,
    offload: offloaded(flags),
  });
  if (output.json) output.out(JSON.stringify({ type: "plan", ...plan }));
  else for (const line of describe(plan)) output.out(line);
  checkFits(plan);
  return 0;
}

function describe(plan: MemoryPlan): string[] {
  const { decoding } = plan;
  const row = (name: string, bytes: number, note = "") => `  ${name.padEnd(22)}${gib(bytes).padStart(10)}${note}`;
  const tiles = decoding?.parts.some((n) => n > 1)
    ? `  in ${decoding.parts.join(" x ")} tiles (frames x height x width), ${decoding.work.toFixed(2)} times the work`
    : "";
  return [
    `weights on ${plan.device}${plan.offload ? ", one model at a time" : ""}`,
    ...Object.entries(plan.weights).map(([name, bytes]) => row(name, bytes)),
    `activations, for ${plan.tokens} tokens`,
    ...plan.stages.map(({ name, activations }) => row(name, activations, name === "decoding" ? tiles : "")),
    "at most at a time",
    row(plan.device, plan.peak, `  of ${gib(plan.available)} free`),
    ...(plan.offload ? [] : [row("with --offload", plan.peakOffloaded)]),
    row("beside that, in Node", plan.host),
  ];
}
