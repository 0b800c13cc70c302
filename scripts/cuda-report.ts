/**
 * What nvcc makes of the kernels, checked without a GPU: `npm run cuda:report`. Compiles every CUDA source for every
 * architecture of the build, holds each kernel against cuda/ceilings.json, and fails on a spill, on a kernel that has
 * outgrown its ceiling, and on a tensor-core kernel without tensor-core instructions. See CONTRIBUTING.md.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join, relative } from "node:path";
import { parseArgs } from "node:util";
import { type Ceilings, compare, format, renew, setDynamicShared } from "./cuda-report/ceilings.js";
import { type Compiled, compile, compilerVersion } from "./cuda-report/compile.js";
import { cudaSources } from "./cuda-report/flags.js";
import { type Kernel, kernelsOf } from "./cuda-report/kernels.js";
import { markdown } from "./cuda-report/table.js";

const root = join(__dirname, "..");
const usage = `Usage: npm run cuda:report -- [options] [FILE.cu…]
  --write          renew cuda/ceilings.json from what the kernels use now
  --dynamic NAME=BYTES
                   with --write: dynamic shared memory of all kernels whose name begins so; may be given often
  --markdown FILE  write the table instead of printing it
  --arch LIST      only these, as in sm_86,sm_90
  --jobs N         compilations at a time (default 2)
  --require        fail instead of skipping where there is no nvcc`;

/** Calls `task` for every item, at most `jobs` at a time; results in the order of the items. */
async function parallel<T, R>(items: T[], jobs: number, task: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  let next = 0;
  const worker = async () => {
    while (next < items.length) {
      const index = next++;
      results[index] = await task(items[index]);
    }
  };
  await Promise.all(Array.from({ length: Math.min(jobs, items.length) }, worker));
  return results;
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      write: { type: "boolean" },
      dynamic: { type: "string", multiple: true, default: [] },
      markdown: { type: "string" },
      arch: { type: "string" },
      jobs: { type: "string", default: "2" },
      require: { type: "boolean" },
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help) {
    console.log(usage);
    return 0;
  }
  const jobs = Number(values.jobs);
  if (!Number.isInteger(jobs) || jobs < 1) throw new Error(`--jobs ${values.jobs}: a whole number from 1 on`);
  const part = values.arch !== undefined || positionals.length > 0;
  if (values.write && part)
    throw new Error("--write needs every kernel on every architecture: leave out --arch and files");

  const dynamic = values.dynamic.map((text) => {
    const [, beginning, bytes] = /^(.+)=(\d+)$/.exec(text) ?? [];
    if (beginning === undefined) throw new Error(`--dynamic ${text}: expected NAME=BYTES`);
    return { beginning, bytes: Number(bytes) };
  });
  if (dynamic.length > 0 && !values.write)
    throw new Error("--dynamic changes cuda/ceilings.json: give --write with it");

  const all = cudaSources(join(root, "build"));
  if (all.length === 0) {
    const reason = "the build in build/ has no CUDA sources (no nvcc was found, or LTX_CUDA=OFF)";
    if (values.require) throw new Error(`${reason}: install nvcc, then npm run build:native`);
    console.log(`cuda:report: skipped, ${reason}`);
    return 0;
  }
  const chosen = new Set(positionals.map((file) => basename(file)));
  const sources = all.filter(({ path }) => chosen.size === 0 || chosen.delete(basename(path)));
  if (chosen.size > 0) throw new Error(`no such CUDA source in the build: ${[...chosen].join(", ")}`);
  const built = all[0].architectures;
  const architectures = values.arch?.split(",") ?? built;
  const unknown = architectures.filter((name) => !built.includes(name));
  if (unknown.length > 0) throw new Error(`--arch ${unknown.join(",")}: the build has ${built.join(", ")}`);

  const tasks = sources.flatMap((source) => architectures.map((architecture) => ({ source, architecture })));
  const compiled = await parallel(tasks, jobs, async ({ source, architecture }) => {
    const result = await compile(source, architecture, join(root, "build", "cuda-report"), root);
    if (result.seconds > 0) {
      console.error(`${basename(source.path)} ${architecture}: compiled in ${result.seconds.toFixed(1)} s`);
    }
    return result;
  });
  const bySource = new Map<string, Map<string, Compiled>>();
  tasks.forEach(({ source, architecture }, index) => {
    const file = relative(join(root, "cuda"), source.path);
    if (!bySource.has(file)) bySource.set(file, new Map());
    bySource.get(file)!.set(architecture, compiled[index]);
  });
  const kernels: Kernel[] = [...bySource].flatMap(([file, results]) => kernelsOf(file, results));

  const ceilingsFile = join(root, "cuda", "ceilings.json");
  const nvcc = compilerVersion(all[0].nvcc);
  let ceilings: Ceilings = { nvcc, kernels: {} };
  if (existsSync(ceilingsFile)) ceilings = JSON.parse(readFileSync(ceilingsFile, "utf8"));
  if (values.write) {
    ceilings = renew(kernels, ceilings, nvcc);
    for (const { beginning, bytes } of dynamic) {
      if (setDynamicShared(ceilings, beginning, bytes) === 0) {
        throw new Error(`--dynamic ${beginning}=${bytes}: no kernel with dynamic shared memory has such a name`);
      }
    }
    writeFileSync(ceilingsFile, format(ceilings));
  }
  const table = markdown(kernels, ceilings, architectures, nvcc);
  if (values.markdown !== undefined) writeFileSync(values.markdown, table);
  else console.log(table);

  const seen = new Set(bySource.keys());
  const relevant = Object.entries(ceilings.kernels).filter(([file]) => !part || seen.has(file));
  const problems = compare(kernels, { ...ceilings, kernels: Object.fromEntries(relevant) });
  for (const problem of problems) console.error(problem);
  if (problems.length > 0 && ceilings.nvcc !== nvcc) {
    console.error(`The ceilings were measured with nvcc ${ceilings.nvcc}, this is ${nvcc}.`);
  }
  console.log(
    `${kernels.length} kernels in ${sources.length} files for ${architectures.join(", ")}: ${problems.length} problems`,
  );
  return problems.length > 0 ? 1 : 0;
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error) => {
    console.error(`cuda:report: ${(error as Error & { stderr?: string }).stderr || (error as Error).message}`);
    process.exitCode = 1;
  },
);
