/**
 * A checkpoint of LTX-Video 2B 0.9.5 in all its sizes with random weights, in the official single-file format and bf16;
 * and what loading it and one step of its transformer take. See bench/README.md.
 */
import { Command } from "commander";
import { parseOfficialTransformer } from "../lib/config/official/transformer.js";
import { parseOfficialVae } from "../lib/config/official/vae.js";
import { PhiloxRandom } from "../lib/data/philox.js";
import { loadWeights } from "../lib/formats/load-weights.js";
import { readSafetensors, type SafetensorsTensor, writeSafetensors } from "../lib/formats/safetensors.js";
import { LtxVideoTransformer } from "../lib/models/transformer/index.js";
import { CausalVideoAutoencoder } from "../lib/models/video-vae/index.js";
import { checkpointShape, Initializer, type Module, precisionDtypes } from "../lib/nn/index.js";
import { normal } from "../lib/ops/index.js";
import { device, narrow, noGrad, scope, Tensor } from "../lib/tensor/index.js";
import { describeLoad } from "./machine.js";
import { median } from "./measure.js";
import { OFFICIAL_2B } from "./official-config.js";
import { deviceName, positive } from "./options.js";

const PREFIX = "model.diffusion_model.";

/** The models; their parameters are unwritten memory. */
function models(): Record<string, Module> {
  const init = new Initializer(device("cpu"), 0, { weights: "bf16", values: false });
  return {
    [PREFIX]: new LtxVideoTransformer(parseOfficialTransformer(OFFICIAL_2B.transformer, "bench").options, init),
    "vae.": new CausalVideoAutoencoder(parseOfficialVae(OFFICIAL_2B.vae, "bench"), init),
  };
}

/** The name and shape of every tensor in the file. */
function namedShapes(): (readonly [name: string, shape: readonly number[]])[] {
  return Object.entries(models()).flatMap(([prefix, model]) => {
    const found = [...model.namedState(prefix)].map(([name, item]) => [name, checkpointShape(item)] as const);
    model.dispose();
    return found;
  });
}

/** Random values are drawn once for each power of two and serve all tensors, each from another place on. */
const POOL = (1 << 20) - 3;
const pools = new Map<number, Uint16Array>();

function pool(exponent: number): Uint16Array {
  let values = pools.get(exponent);
  if (!values) {
    const random = new PhiloxRandom(exponent + 100);
    values = narrow(Float32Array.from({ length: POOL }, () => random.uniform(-1, 1) * 2 ** exponent));
    pools.set(exponent, values);
  }
  return values;
}

/** bf16, such that what goes through the layers keeps its size. */
function values(name: string, shape: readonly number[], seed: number): Uint8Array {
  const result = new Uint16Array(shape.reduce((a, b) => a * b, 1));
  const constant = /timestep_scale_multiplier$/.test(name) ? 1000 : /norm\.weight$|std-of-means$/.test(name) ? 1 : 0;
  if (shape.length < 2) return new Uint8Array(result.fill(narrow(Float32Array.of(constant))[0]).buffer);
  const inputs = /table$/.test(name) ? shape[1] : shape.slice(1).reduce((a, b) => a * b);
  const source = pool(Math.round(Math.log2(Math.sqrt(3 / inputs))));
  for (let done = 0, at = (7919 * seed) % POOL; done < result.length; at = 0) {
    const part = source.subarray(at, at + Math.min(POOL - at, result.length - done));
    result.set(part, done);
    done += part.length;
  }
  return new Uint8Array(result.buffer);
}

async function write(path: string): Promise<void> {
  const tensors = namedShapes().map(
    ([name, shape], i): SafetensorsTensor => ({
      name,
      dtype: "BF16",
      shape,
      data: async () => values(name, shape, i),
    }),
  );
  await writeSafetensors(path, tensors, { config: JSON.stringify(OFFICIAL_2B) });
}

interface StepOptions {
  device: string;
  steps: number;
}

/** Loads the transformer and runs it on latents of 768 x 512 x 25 frames; a line of JSON. */
async function step(path: string, { device: name, steps }: StepOptions): Promise<void> {
  console.error(describeLoad());
  const peak = () => process.resourceUsage().maxRSS * 1024;
  const target = device(name);
  await target.synchronize();
  const node_bytes = peak();
  const file = await readSafetensors(path);
  const { options } = parseOfficialTransformer(JSON.parse(file.metadata.config).transformer, path);
  const { weights, computeDtype } = precisionDtypes("bfloat16");
  const begun = performance.now();
  const init = new Initializer(target, 0, { weights, values: false });
  const model = new LtxVideoTransformer(options, init, { computeDtype }).requiresGrad(false).train(false);
  const rename = (key: string) => PREFIX + key;
  await loadWeights(model, file, { rename, ignore: (tensor) => !tensor.startsWith(PREFIX) });
  const load_s = (performance.now() - begun) / 1000;
  const model_bytes = target.memory().live;
  const load_peak_bytes = peak();
  const random = (shape: number[], purpose: number) => normal(shape, { seed: 1, step: 0, purpose }, { device: target });
  const [latents, text] = [random([1, 4, 16, 24, options.input_channels], 1), random([1, 256, 4096], 2)];
  const mask = Tensor.from(new Float32Array(256).fill(1), [1, 256], { device: target });
  const t = Tensor.from([0.5], [1], { device: target });
  const times: number[] = [];
  let finite = true;
  for (let i = 0; i < steps; i++) {
    const start = performance.now();
    const velocity = scope(() => noGrad(() => model.forward(latents, t, text, mask)));
    finite = ((await velocity.read()) as Float32Array).every(Number.isFinite);
    times.push((performance.now() - start) / 1000);
    velocity.dispose();
  }
  const line = {
    kind: "official-2b",
    device: target.name,
    tokens: 4 * 16 * 24,
    parameters: model.parameterCount,
    load_s,
    step_s: median(times),
    first_step_s: times[0],
    node_bytes,
    model_bytes,
    load_peak_bytes,
    peak_bytes: peak(),
    device_peak_bytes: target.memory().peak,
    finite,
  };
  console.log(JSON.stringify(line));
  await file.close();
}

const program = new Command("official-2b").description("a full-size random checkpoint of LTX-Video 2B 0.9.5");
program.command("write").argument("<file>").description("write it: 6.3 GB").action(write);
program
  .command("step")
  .argument("<file>")
  .description("load its transformer and time one denoising step at 768x512, 25 frames")
  .option("--device <name>", "where to run", deviceName, "cpu")
  .option("--steps <n>", "how often", positive, 1)
  .action(step);
program.parseAsync().catch((error: Error) => {
  console.error(error.message);
  process.exitCode = 1;
});
