/** Configurations: YAML files of runs, releases and sampling schemes. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { loadConfig, loadPipelineConfig, loadSamplingScheme } from "../../../lib/config/index.js";
import { changeText, mutateBytes } from "../mutate.js";
import type { Random } from "../random.js";
import { must, type Target } from "../target.js";
import { checkNumbers } from "./weights.js";

const CONFIGS = join(__dirname, "..", "..", "..", "configs");

const TOKENS = [
  "-1",
  "0",
  "1e400",
  ".nan",
  ".inf",
  "null",
  "~",
  "[]",
  "{}",
  "True",
  "yes",
  "010",
  "1_000",
  "0x1f",
  "*a",
  "&a 1",
  "!!set x",
  "'",
  "? x",
  "1e9",
  "1000000000000",
  "0.5",
  "[[res_x, 1]]",
  "constructor",
  "__proto__: 1",
  "<<: {a: 1}",
  "- 1",
  "|",
  "\t",
  "2023-01-01",
  "1:30",
  "''",
  '"\\ud800"',
  "[1, [2, [3]]]",
  "{a: {b: 1}}",
  "&a [*a]",
  "!!js/function 'x'",
  "%YAML 1.1",
  "---",
  "...",
  "é",
  "/etc/passwd",
];

/** Lines of a YAML file changed. */
function mutateYaml(random: Random, text: string, others: readonly string[]): string {
  const lines = text.split("\n");
  for (let changes = random.within(1, 4); changes > 0; changes--) {
    const i = random.below(lines.length);
    const token = random.chance(0.7) ? random.pick(TOKENS) : String(random.edge());
    const acts: (() => unknown)[] = [
      () => (lines[i] = lines[i].replace(/: .*/, () => `: ${token}`)),
      () => (lines[i] = lines[i].replace(/: .*/, () => `: ${token}`)),
      () =>
        (lines[i] = lines[i].replace(
          /\w+:/,
          () => `${random.chance(0.5) ? token : changeText(random, "seed", TOKENS)}:`,
        )),
      () => lines.splice(i, 1),
      () => lines.splice(i, 0, lines[i]),
      () => (lines[i] = `  ${lines[i]}`),
      () => (lines[i] = lines[i].trimStart()),
      () => lines.splice(i, 0, token),
      () => lines.splice(i, 0, random.pick(random.pick(others).split("\n"))),
      () => (lines[i] = changeText(random, lines[i], TOKENS)),
    ];
    random.pick(acts)();
    if (lines.length === 0) lines.push("");
  }
  return lines.join("\n");
}

function yamlTarget(
  name: string,
  about: string,
  files: string[],
  read: (path: string) => Promise<unknown>,
  weight: number,
): Target {
  return {
    name,
    about,
    weight,
    async setup(folder) {
      const texts = files.map((file) => readFileSync(file, "utf8"));
      const path = join(folder, "case.yaml");
      return async (random) => {
        const text = random.pick(texts);
        writeFileSync(
          path,
          random.chance(0.85) ? mutateYaml(random, text, texts) : mutateBytes(random, Buffer.from(text)),
        );
        const config = await read(path);
        must(typeof config === "object" && config !== null, () => `the configuration ${config}`);
        checkNumbers(config, "config");
      };
    },
  };
}

const yamlIn = (folder: string) =>
  readdirSync(join(CONFIGS, folder))
    .filter((name) => name.endsWith(".yaml"))
    .map((name) => join(CONFIGS, folder, name));
const SCHEME = `sampling_scheme:
  target: autoregressive
  params:
    video_length: 20
    num_observed_frames: 2
    max_frames: 5
    step_size: 3
`;

export const yamlTrain = yamlTarget(
  "yaml-train",
  "YAML files of training runs",
  [...yamlIn("moving_mnist"), ...yamlIn(".")],
  loadConfig,
  3,
);
export const yamlPipeline = yamlTarget(
  "yaml-pipeline",
  "YAML files of official pipelines",
  yamlIn("official"),
  (path) => loadPipelineConfig(path),
  6,
);

export const yamlScheme: Target = {
  ...yamlTarget("yaml-scheme", "YAML files of sampling schemes", [], loadSamplingScheme, 3),
  async setup(folder) {
    const path = join(folder, "case.yaml");
    return async (random) => {
      writeFileSync(path, mutateYaml(random, SCHEME, [SCHEME]));
      checkNumbers(await loadSamplingScheme(path), "scheme");
    };
  },
};
