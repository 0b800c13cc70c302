/**
 * `npm run bench:epoch`: flow training from end to end, ours beside PyTorch in the reference's way, which encodes clips and
 * prompts anew in every step. See bench/README.md.
 */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Command, Option } from "commander";
import { type FlowRunConfig, loadConfig, type QuickstartConfig } from "../lib/config/index.js";
import type { T5EncoderConfig } from "../lib/models/text-encoder/index.js";
import { packageRoot } from "../lib/native.js";
import { tinyT5Config } from "../test/support/tiny-t5.js";
import type { EpochReply, EpochSetup } from "./epoch-worker.js";
import { describeLoad, describeMachine } from "./machine.js";
import { median } from "./measure.js";
import { oneOf, positive } from "./options.js";
import { findPeer, type PeerChoice } from "./peers.js";
import type { BenchDtype } from "./protocol.js";
import { epochRatio } from "./ratios.js";
import { T5_BASE, writeT5 } from "./t5-model.js";
import { Worker } from "./worker.js";

/** Over so many epochs the ratio that users feel is given. */
const EPOCHS = 10;
/** Tokens of a prompt such as "three and 7" with the end of the text. */
const WORDS = 5;

interface PeerReply {
  seconds: number;
  vae_s: number;
  text_s: number;
  flow_s: number;
  rss_bytes: number;
  others?: Record<string, number>;
  about?: Record<string, string | number>;
}

/** A line of --json. Seconds of an epoch are measured whole for us; PyTorch's are its steps' median times their number. */
export interface EpochLine {
  kind: "epoch";
  dtype: BenchDtype;
  clips: number;
  batch: number;
  /** Ours: with the caches made in it, what encoding the clips took of that, and with the caches there. */
  first_s: number;
  encode_s: number;
  later_s: number;
  step_s: number;
  peer_s: number | null;
  peer_step_s: number | null;
  /** The three parts of PyTorch's step. */
  peer_vae_s: number | null;
  peer_text_s: number | null;
  peer_flow_s: number | null;
  /** PyTorch's time over ours: of the first epoch, of a later one, and of the first 10 together. */
  ratio_first: number | null;
  ratio_later: number | null;
  ratio_10: number | null;
  rss_bytes: number;
  peer_rss_bytes: number | null;
  peer: string;
}

interface Options {
  clips: number;
  batch: number;
  dtype: BenchDtype[];
  rounds: number;
  peer: PeerChoice;
  tiny: boolean;
  json: boolean;
}

function options(): Options {
  return new Command("bench:epoch")
    .option("--clips <n>", "clips of an epoch", positive, 256)
    .option("--batch <n>", "clips of a step", positive, 32)
    .option("--dtype <names>", "dtypes of activations", oneOf(["f32", "bf16"]), ["f32", "bf16"])
    .option("--rounds <n>", "later epochs of ours and steps of PyTorch, in turns; medians are reported", positive, 3)
    .addOption(new Option("--peer <name>", "default: torch where it can be imported").choices(["torch", "none"]))
    .option("--tiny", "small models, which only show that it works", false)
    .option("--json", "a line of JSON for each measurement", false)
    .parse()
    .opts();
}

/** The models: full-size, or tiny ones whose text encoder is a T5 nevertheless. */
async function models(tiny: boolean): Promise<{ config: FlowRunConfig; t5: T5EncoderConfig }> {
  const load = (file: string) => loadConfig(join(packageRoot, file));
  if (!tiny) return { config: (await load("configs/moving_mnist/ltx_video.yaml")) as FlowRunConfig, t5: T5_BASE };
  const { flow } = (await load("test/support/tiny.yaml")) as QuickstartConfig;
  const { model_type: _, feed_forward_proj: __, ...t5 } = tinyT5Config;
  return { config: { ...flow, text_encoder: { kind: "t5", version: "tiny", max_length: 8 } }, t5 };
}

/** The run of one measurement; it neither saves nor scores on the way. */
function runConfig(config: FlowRunConfig, dtype: BenchDtype, { clips, batch, rounds }: Options): FlowRunConfig {
  const steps = (clips / batch) * (1 + rounds);
  const never = steps + 1;
  const training = {
    ...config.training,
    ...{ steps, batch_size: batch, validate_every: never, save_every: never, ema_decay: 0 },
    mixed_precision: dtype === "bf16" ? ("bf16" as const) : ("no" as const),
  };
  return { ...config, data: { ...config.data, size: clips }, training };
}

function peerSetup({ config, t5 }: Awaited<ReturnType<typeof models>>, dtype: BenchDtype, { clips, batch }: Options) {
  const { frames, height, width, num_channels } = config.data;
  return {
    ...{ dtype, clips, batch, dropout: config.training.prompt_dropout },
    config: {
      vae: config.latent_encoder,
      transformer: config.transformer,
      t5,
      shape: [frames, height, width, num_channels],
      text: [config.text_encoder.max_length, WORDS],
    },
  };
}

async function measure(
  dtype: BenchDtype,
  folder: string,
  of: Awaited<ReturnType<typeof models>>,
  peer: ReturnType<typeof findPeer>,
  chosen: Options,
): Promise<EpochLine> {
  const { clips, batch, rounds } = chosen;
  const caches = join(folder, dtype);
  await mkdir(caches);
  const setup: EpochSetup = {
    device: "cpu",
    config: runConfig(of.config, dtype, chosen),
    textEncoder: folder,
    folder: caches,
  };
  const command = [process.execPath, ...process.execArgv, join(__dirname, "epoch-worker.ts")];
  const ours = await Worker.start<EpochReply, EpochReply>(command, setup, { name: `ltx-native (${dtype})` });
  let theirs: Worker<PeerReply, PeerReply> | null = null;
  const mine: EpochReply[] = [];
  const peers: PeerReply[] = [];
  try {
    if (peer.command)
      theirs = await Worker.start(peer.command, peerSetup(of, dtype, chosen), { name: `PyTorch (${dtype})` });
    for (let round = 0; round < rounds; round++) {
      mine.push(await ours.ask("epoch"));
      if (theirs) peers.push(await theirs.ask("step"));
    }
  } finally {
    await ours.stop();
    await theirs?.stop();
  }
  const part = (pick: (reply: PeerReply) => number) => (peers.length ? median(peers.map(pick)) : null);
  const peer_step_s = part(({ seconds }) => seconds);
  const peer_s = peer_step_s && (peer_step_s * clips) / batch;
  const { seconds: first, encode_s } = ours.first;
  const later = median(mine.map(({ seconds }) => seconds));
  const ratio = (epochs: number) => peer_s && epochRatio({ first, later, peer: peer_s }, epochs);
  const about = theirs?.first.about;
  return {
    kind: "epoch",
    ...{ dtype, clips, batch, first_s: first, encode_s, later_s: later },
    step_s: median(mine.flatMap(({ step_s }) => step_s)),
    ...{ peer_s, peer_step_s },
    peer_vae_s: part(({ vae_s }) => vae_s),
    peer_text_s: part(({ text_s }) => text_s),
    peer_flow_s: part(({ flow_s }) => flow_s),
    ratio_first: ratio(1),
    ratio_later: peer_s && peer_s / later,
    ratio_10: ratio(EPOCHS),
    rss_bytes: mine[mine.length - 1].rss_bytes,
    peer_rss_bytes: peers.length ? peers[peers.length - 1].rss_bytes : null,
    peer: about ? `PyTorch ${about.version}, ${about.threads} threads, ${about.layout}` : peer.note,
  };
}

function table(line: EpochLine): string {
  const seconds = (s: number | null) => (s === null ? "–" : `${s.toFixed(2)} s`);
  const times = (ratio: number | null) => (ratio === null ? "–" : `${ratio.toFixed(2)}x`);
  const { dtype, clips, batch, first_s, encode_s, later_s, step_s, peer_s, peer_step_s } = line;
  return [
    `${dtype}: an epoch of ${clips} clips in batches of ${batch}`,
    `  ltx-native, first epoch   ${seconds(first_s)}, of which ${seconds(encode_s)} encode the clips`,
    `  ltx-native, a later one   ${seconds(later_s)}, ${seconds(step_s)} a step`,
    `  the reference's way       ${seconds(peer_s)} (${seconds(peer_step_s)} a step, times ${clips / batch}): VAE ` +
      `${seconds(line.peer_vae_s)}, text ${seconds(line.peer_text_s)}, transformer ${seconds(line.peer_flow_s)}; ${line.peer}`,
    `  ratio                     first epoch ${times(line.ratio_first)}, later ${times(line.ratio_later)}, ` +
      `first ${EPOCHS} together ${times(line.ratio_10)}`,
  ].join("\n");
}

async function main(): Promise<void> {
  const chosen = options();
  const { clips, batch, dtype, tiny, json } = chosen;
  if (clips % batch !== 0) throw new Error(`--clips ${clips} is no multiple of --batch ${batch}`);
  const peer = findPeer("epoch.py", chosen.peer, false);
  console.error(`${describeMachine()}, ${describeLoad()}\n${peer.note}`);
  const of = await models(tiny);
  const folder = await mkdtemp(join(tmpdir(), "ltx-epoch-"));
  try {
    await writeT5(folder, of.t5);
    for (const type of dtype) {
      const line = await measure(type, folder, of, peer, chosen);
      console.log(json ? JSON.stringify(line) : table(line));
    }
  } finally {
    await rm(folder, { recursive: true });
  }
  console.error(describeLoad());
}

main().catch((error) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
