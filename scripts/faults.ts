/**
 * Injects failures by count and compares what is left: `npm run faults`. Ends with a table of kinds: how many failures
 * were injected, and how many outcomes were wrong; any wrong one is told with what repeats it, and the exit code is 1.
 */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { fileKinds } from "./faults/files.js";
import { pipelineKinds } from "./faults/pipelines.js";
import { processKinds } from "./faults/processes.js";
import { type FaultKind, randomOf } from "./faults/runner.js";
import { trainerKinds } from "./faults/trainers.js";

const kinds: readonly FaultKind[] = [...trainerKinds, ...fileKinds, ...processKinds, ...pipelineKinds];

const usage = `Usage: npm run faults -- [--kind LIST] [--count N] [--seed S]
  --kind LIST   of the names below; all of them without it
  --count N     failures for each thing that is tried (default 20)
  --seed S      which calls fail (default 1)
${kinds.map(({ name, what }) => `  ${name.padEnd(16)} ${what}`).join("\n")}`;

interface Row {
  name: string;
  injected: number;
  wrong: number;
  seconds: number;
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      kind: { type: "string" },
      count: { type: "string", default: "20" },
      seed: { type: "string", default: "1" },
      help: { type: "boolean" },
    },
  });
  const [count, seed] = [Number(values.count), Number(values.seed)];
  const wanted = values.kind?.split(",") ?? kinds.map(({ name }) => name);
  const unknown = wanted.filter((name) => !kinds.some((kind) => kind.name === name));
  if (values.help || unknown.length > 0 || !(count >= 1) || !Number.isSafeInteger(seed)) {
    console.error(unknown.length > 0 ? `no kind is named ${unknown.join(", ")}\n${usage}` : usage);
    return values.help ? 0 : 2;
  }
  const rows: Row[] = [];
  const root = mkdtempSync(join(tmpdir(), "ltx-faults-"));
  try {
    for (const kind of kinds.filter(({ name }) => wanted.includes(name))) {
      const folder = join(root, kind.name);
      mkdirSync(folder);
      const row: Row = { name: kind.name, injected: 0, wrong: 0, seconds: 0 };
      const begun = performance.now();
      const wrong = (what: string) => {
        row.wrong++;
        console.log(`WRONG ${kind.name}: ${what} (--kind ${kind.name} --count ${count} --seed ${seed})`);
      };
      await kind
        .run({
          folder,
          count,
          random: randomOf(seed),
          injected: () => row.injected++,
          wrong,
          say: (text) => console.log(`${kind.name}: ${text}: ${row.injected} injected, ${row.wrong} wrong`),
        })
        .catch((error) => wrong(`ended early: ${error?.stack ?? error}`));
      row.seconds = (performance.now() - begun) / 1000;
      rows.push(row);
    }
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
  console.log(`\n${"kind".padEnd(18)}${"injected".padStart(10)}${"wrong".padStart(8)}${"seconds".padStart(10)}`);
  for (const { name, injected, wrong, seconds } of rows) {
    console.log(
      `${name.padEnd(18)}${String(injected).padStart(10)}${String(wrong).padStart(8)}${seconds.toFixed(0).padStart(10)}`,
    );
  }
  const silent = rows.filter(({ injected }) => injected === 0);
  for (const { name } of silent) console.log(`${name} injected nothing`);
  return rows.some(({ wrong }) => wrong > 0) || silent.length > 0 ? 1 : 0;
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
