import { arch, cpus, platform, totalmem } from "node:os";
import { Command } from "commander";
import { backends, device } from "../tensor/index.js";
import { version } from "../version.js";
import { standardOutput } from "./output.js";

export function infoCommand(): Command {
  return new Command("info")
    .description("what this machine offers: device, instruction set, threads, backends and why one is off, versions")
    .option("--json", "one JSON object on standard output")
    .action((flags: { json?: boolean }, command: Command) => {
      command.setOptionValue("exitCode", showInfo(flags.json === true));
    });
}

function showInfo(json: boolean): number {
  const output = standardOutput(json);
  const found = backends();
  const usable = found.find((b) => b.available) !== undefined;
  const chosen = usable ? device("auto") : null;
  const info = {
    version,
    node: process.versions.node,
    platform: `${platform()}-${arch()}`,
    processor: cpus()[0]?.model ?? "unknown",
    memory: totalmem(),
    device: chosen && { name: chosen.name, ...chosen.describe() },
    backends: found,
  };
  if (json) {
    output.out(JSON.stringify(info));
    return usable ? 0 : 1;
  }
  output.out(`ltx-native ${version}, Node ${info.node}, ${info.platform}`);
  output.out(`processor   ${info.processor}, ${(info.memory / 2 ** 30).toFixed(1)} GiB`);
  if (chosen) {
    const { isa, threads, onednn } = chosen.describe();
    output.out(`device      ${chosen.name}: ${isa}, ${threads} threads, oneDNN ${onednn}`);
  }
  for (const { name, available, detail } of found)
    output.out(`backend     ${name}: ${available ? "available" : `off (${detail})`}`);
  output.out("backend     cuda: off (not part of this version)");
  if (!usable) output.err("no backend works on this machine");
  return usable ? 0 : 1;
}
