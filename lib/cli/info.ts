import { arch, cpus, platform, totalmem } from "node:os";
import { Command } from "commander";
import { LtxError } from "../errors.js";
import { backends, Device, device } from "../tensor/index.js";
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
  const chosen = chosenDevice();
  const usable = chosen instanceof Device;
  const about = usable ? chosen.describe() : {};
  const info = {
    version,
    node: process.versions.node,
    platform: `${platform()}-${arch()}`,
    processor: cpus()[0]?.model ?? "unknown",
    memory: totalmem(),
    device: usable ? { ...about, name: chosen.name, gpu: about.name } : null,
    backends: found,
  };
  if (json) {
    output.out(JSON.stringify(info));
    return usable ? 0 : 1;
  }
  output.out(`ltx-native ${version}, Node ${info.node}, ${info.platform}`);
  output.out(`processor   ${info.processor}, ${(info.memory / 2 ** 30).toFixed(1)} GiB`);
  if (usable) output.out(`device      ${chosen.name}: ${summary(about)}`);
  for (const { name, available, detail } of found) {
    output.out(`backend     ${name}: ${available ? `available (${summary(JSON.parse(detail))})` : `off (${detail})`}`);
  }
  if (!usable) output.err(chosen);
  return usable ? 0 : 1;
}

/** What `auto` stands for, or why there is nothing. */
function chosenDevice(): Device | string {
  try {
    return device("auto");
  } catch (error) {
    if (error instanceof LtxError && error.code === "unavailable") return error.message;
    throw error;
  }
}

/** What a backend says of itself, in one line. */
function summary(about: Record<string, string | number>): string {
  const { isa, threads, onednn, name, compute, memory, driver, cublaslt } = about;
  return [
    isa,
    threads && `${threads} threads`,
    onednn && `oneDNN ${onednn}`,
    name,
    compute && `compute capability ${compute}`,
    memory && `${(Number(memory) / 2 ** 30).toFixed(1)} GiB`,
    driver && `driver ${driver}`,
    cublaslt && `cuBLASLt ${cublaslt}`,
  ]
    .filter(Boolean)
    .join(", ");
}
