/** `npm run bench:start`: how long the command and the package take to start. See bench/README.md. */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { Command } from "commander";
import { packageRoot } from "../lib/native.js";
import { describeLoad, describeMachine } from "./machine.js";
import { median } from "./measure.js";
import { positive } from "./options.js";

/** Seconds that a user may wait. */
const TARGETS = { info: 0.25, require: 0.15 };

/** A line of --json. */
export interface StartLine {
  kind: "start";
  name: "node" | "info" | "require" | "require-process";
  /** The median. */
  seconds: number;
  fastest_s: number;
  slowest_s: number;
  /** Beyond what Node takes by itself. */
  beyond_node_s: number | null;
  target_s: number | null;
}

const command = join(packageRoot, "bin", "ltx-native.js");
const index = join(packageRoot, "dist", "index.js");
const REQUIRE = `const begun = performance.now(); require(${JSON.stringify(index)}); console.log((performance.now() - begun) / 1000)`;

/** What a Node process prints, and its seconds from start to end. */
function timed(args: readonly string[]): { seconds: number; output: string } {
  const begun = performance.now();
  const output = execFileSync(process.execPath, args, { encoding: "utf8", cwd: packageRoot });
  return { seconds: (performance.now() - begun) / 1000, output };
}

function lines(runs: number): StartLine[] {
  const times: Record<StartLine["name"], number[]> = { node: [], info: [], require: [], "require-process": [] };
  // In turns, so that a slow moment of the machine falls on all of them.
  for (let run = 0; run < runs; run++) {
    times.node.push(timed(["-e", "0"]).seconds);
    times.info.push(timed([command, "info"]).seconds);
    const loading = timed(["-e", REQUIRE]);
    times.require.push(Number(loading.output));
    times["require-process"].push(loading.seconds);
  }
  const node = median(times.node);
  return (Object.keys(times) as StartLine["name"][]).map((name) => ({
    kind: "start",
    name,
    seconds: median(times[name]),
    fastest_s: Math.min(...times[name]),
    slowest_s: Math.max(...times[name]),
    beyond_node_s: name === "info" || name === "require-process" ? median(times[name]) - node : null,
    target_s: name === "info" || name === "require" ? TARGETS[name] : null,
  }));
}

function main(): void {
  const { runs, json } = new Command("bench:start")
    .option("--runs <n>", "starts of each; medians are reported", positive, 15)
    .option("--json", "a line of JSON for each measurement", false)
    .parse()
    .opts<{ runs: number; json: boolean }>();
  if (!existsSync(index)) throw new Error(`${index} is missing: npm run build:ts`);
  console.error(`${describeMachine()}, ${describeLoad()}`);
  for (const line of lines(runs)) {
    if (json) console.log(JSON.stringify(line));
    else {
      const target = line.target_s === null ? "" : `  target ${line.target_s.toFixed(2)} s`;
      console.log(`${line.name.padEnd(16)} ${line.seconds.toFixed(3)} s${target}`);
    }
  }
  console.error(describeLoad());
}

main();
