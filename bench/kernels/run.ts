/** `npm run bench:kernels`: each kernel by itself, against the machine's own limits and PyTorch. See bench/README.md. */
import { join } from "node:path";
import { Command, Option } from "commander";
import { device as openDevice } from "../../lib/tensor/index.js";
import { describeLoad, describeMachine } from "../machine.js";
import { deviceName, oneOf, positive, seconds } from "../options.js";
import { findPeer, type PeerChoice } from "../peers.js";
import type { BenchDtype } from "../protocol.js";
import { casesFor, opNames, scalesOf } from "./cases.js";
import type { KernelLine } from "./lines.js";
import { Labs, measureCeilings } from "./measure.js";
import { HEAD, tableRow } from "./table.js";

interface Options {
  device: string;
  only: string[];
  problem?: string;
  dtype: BenchDtype[];
  peer: PeerChoice;
  rounds?: number;
  seconds?: number;
  budget?: number;
  quick: boolean;
  json: boolean;
}

function options(): Options {
  return new Command("bench:kernels")
    .option("--device <name>", "auto, cpu, cuda, cuda:N or emulator", deviceName, "auto")
    .option("--only <ops>", `only these ops: ${opNames.join(", ")}`, oneOf(opNames), [])
    .option("--problem <text>", "only problems with that in their name, as `4x25x16x16` or `point`")
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
  const peer = findPeer("kernels.py", chosen.peer, device.startsWith("cuda"));
  const { rounds = chosen.quick ? 3 : 5, seconds = chosen.quick ? 0.02 : 0.1 } = chosen;
  const setup = { device, rounds, seconds };
  const commands = { ours: ownCommand(), peer: peer.command };
  const say = chosen.json ? console.error : console.log;
  say(`${describeMachine()}, ${describeLoad()}`);
  say(peer.note);
  const print = (line: KernelLine) => console.log(chosen.json ? JSON.stringify(line) : tableRow(line));
  const all = casesFor(scalesOf(device, chosen.quick), chosen.dtype);

  const { lines, ceilings, about } = await measureCeilings(commands, setup, all.ceilings);
  if (chosen.json) {
    console.log(JSON.stringify({ kind: "about", device, ours: about.ours, peer: about.peer ?? peer.note }));
    console.log(JSON.stringify({ kind: "ceilings", ...ceilings }));
  } else console.log(`${JSON.stringify(about.ours)}\n${HEAD}`);
  for (const line of lines) print(line);
  const labs = new Labs(commands, setup);
  try {
    const cases = all.cases
      .filter(({ op }) => chosen.only.length === 0 || chosen.only.includes(op))
      .filter(({ problem }) => problem.includes(chosen.problem ?? ""));
    for (const [i, given] of cases.entries()) {
      if (chosen.budget && performance.now() - begun > 1000 * chosen.budget) {
        say(`out of time: ${cases.length - i} of ${cases.length} cases are left out, from ${given.id} on`);
        break;
      }
      print(await labs.measure(given, ceilings));
    }
  } finally {
    await labs.stop();
  }
  say(describeLoad());
}

const ownCommand = () => [process.execPath, ...process.execArgv, join(__dirname, "worker.ts")];

main().catch((error) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
