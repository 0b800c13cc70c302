/**
 * Tests the packed package in an empty folder without a compiler, on several Node versions: `npm run test:package`. The
 * tests are those of test/slow/package.slow.ts.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";

const root = join(__dirname, "..");
const usage = `Usage: npm run test:package -- [options]
  --node LIST        Node versions, fetched from npm, as in 20,22,24 (default: the running Node)
  --tarball FILE     test this package instead of packing the checkout
  --quickstart full  train the quickstart at its full length, minutes for each Node (default: short)`;

function fail(message: string): never {
  console.error(`test:package: ${message}\n${usage}`);
  process.exit(2);
}

const { values } = parseArgs({
  options: {
    node: { type: "string" },
    tarball: { type: "string" },
    quickstart: { type: "string", default: "short" },
    help: { type: "boolean", short: "h" },
  },
});
if (values.help) {
  console.log(usage);
  process.exit(0);
}
const env = { ...process.env };
if (values.node !== undefined) {
  const wrong = values.node.split(",").filter((version) => !/^\d+(\.\d+){0,2}$/.test(version));
  if (wrong.length > 0) fail(`--node ${values.node}: ${wrong.join(", ")} is no version, expected as in 20,22.12,24`);
  env.LTX_PACKAGE_NODES = values.node;
}
if (values.tarball !== undefined) {
  const file = resolve(process.env.INIT_CWD ?? ".", values.tarball);
  if (!existsSync(file)) fail(`--tarball ${file} does not exist`);
  env.LTX_PACKAGE_TARBALL = file;
}
if (values.quickstart !== "short" && values.quickstart !== "full")
  fail(`--quickstart ${values.quickstart}: short or full`);
env.LTX_PACKAGE_QUICKSTART = values.quickstart;

const vitest = join(root, "node_modules", "vitest", "vitest.mjs");
const args = [vitest, "run", "--config", "vitest.slow.config.mts", "test/slow/package.slow.ts"];
process.exitCode = spawnSync(process.execPath, args, { cwd: root, env, stdio: "inherit" }).status ?? 1;
