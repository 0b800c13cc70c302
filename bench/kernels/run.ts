/** `npm run bench:kernels`: each kernel by itself, against the machine's own limits and PyTorch. See bench/README.md. */
import { join } from "node:path";
import { Command, Option } from "commander";
import { device as openDevice } from "../../lib/tensor/index.js";
import { describeLoad, describeMachine } from "../machine.js";
import { deviceName, oneOf, positive, seconds } from "../options.js";
import { findPeer, type PeerChoice } from "../peers.js";
import type { BenchDtype } from "../protocol.js";
import type { CaseSpec, KernelCase } from "./case.js";
import { casesFor, opNames, scalesOf } from "./cases.js";
import { Lab } from "./lab.js";
import { type Ceilings, ceilingsOf, type KernelLine, lineOf } from "./lines.js";
import { HEAD, tableRow } from "./table.js";

interface Options {
  device: string;
  only: string[];
  dtype: BenchDtype[];
  peer: PeerChoice;
  rounds?: number;
  seconds?: number;
  budget?: number;
  quick: boolean;
  json: boolean;
}

/** Longest wait for one case: compilation by the peer is part of it. */
const CASE_SECONDS = 60;

function options(): Options {
  return new Command("bench:kernels")
    .option("--device <name>", "auto, cpu, cuda, cuda:N or emulator", deviceName, "auto")
    .option("--only <ops>", `only these ops: ${opNames.join(", ")}`, oneOf(opNames), [])
    .option("--dtype <names>", "dtypes of activations", oneOf(["f32", "bf16"]), ["f32", "bf16"])
    .addOption(new Option("--peer <name>", "default: torch where it can be imported").choices(["torch", "none"]))
    .option("--rounds <n>", "repetitions, of which the median counts (5; 3 with --quick)", positive)
    .option("--seconds <s>", "length of a repetition (0.1; 0.02 with --quick)", seconds)
    .option("--budget <s>", "start no case after that many seconds", seconds)
    .option("--quick", "smaller problems, shorter repetitions", false)
    .option("--json", "a line of JSON for each case", false)
    .parse()
    .opts();
}

async function main(): Promise<void> {
  const chosen = options();
  const begun = performance.now();
  const { name: device } = openDevice(chosen.device);
  const peer = findPeer("gpu_kernels.py", chosen.peer, device.startsWith("cuda"));
  const { rounds = chosen.quick ? 3 : 5, seconds = chosen.quick ? 0.02 : 0.1 } = chosen;
  const setup = { device, rounds, seconds };
  const ours = new Lab("ltx-native", ownCommand(), setup, CASE_SECONDS);
  const theirs = peer.command && new Lab("PyTorch", peer.command, setup, CASE_SECONDS);
  const say = chosen.json ? console.error : console.log;
  say(`${describeMachine()}, ${describeLoad()}`);
  say(peer.note);
  const print = (line: KernelLine) => console.log(chosen.json ? JSON.stringify(line) : tableRow(line));
  const wanted = ({ dtype }: CaseSpec) => chosen.dtype.includes(dtype);
  const all = casesFor(scalesOf(device, chosen.quick));

  const measure = async (given: KernelCase, ceilings: Ceilings | null): Promise<KernelLine> => {
    const mine = await ours.measure(given);
    return lineOf(given, mine, (await theirs?.measure(given)) ?? null, ceilings);
  };
  try {
    const lines: KernelLine[] = [];
    for (const given of all.ceilings.filter(wanted)) lines.push(await measure(given, null));
    const ceilings = ceilingsOf(lines);
    const about = { kind: "about", device, ours: ours.about, peer: theirs?.about ?? peer.note };
    if (chosen.json) console.log(JSON.stringify(about));
    else console.log(`${JSON.stringify(ours.about)}\n${HEAD}`);
    if (chosen.json) console.log(JSON.stringify({ kind: "ceilings", ...ceilings }));
    for (const line of lines) print(line);
    const cases = all.cases.filter(({ op }) => chosen.only.length === 0 || chosen.only.includes(op)).filter(wanted);
    for (const [i, given] of cases.entries()) {
      if (chosen.budget && performance.now() - begun > 1000 * chosen.budget) {
        say(`out of time: ${cases.length - i} of ${cases.length} cases are left out, from ${given.id} on`);
        break;
      }
      print(await measure(given, ceilings));
    }
  } finally {
    await Promise.all([ours.stop(), theirs?.stop()]);
  }
  say(describeLoad());
}

const ownCommand = () => [process.execPath, ...process.execArgv, join(__dirname, "worker.ts")];

main().catch((error) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
