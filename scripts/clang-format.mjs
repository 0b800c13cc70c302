#!/usr/bin/env node
// Formats the C++ and CUDA sources; with --check it only reports, and fails on the first difference.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const files = ["native", "cuda"]
  .filter((folder) => existsSync(join(root, folder)))
  .flatMap((folder) => readdirSync(join(root, folder), { recursive: true }).map((name) => join(folder, name)))
  .filter((file) => /\.(h|cc|cu|cuh)$/.test(file))
  .sort();

if (files.length > 0) {
  const mode = process.argv.includes("--check") ? ["--dry-run", "--Werror"] : ["-i"];
  const { error, status } = spawnSync("clang-format", [...mode, ...files], { cwd: root, stdio: "inherit" });
  if (error?.code === "ENOENT") {
    console.warn(
      `clang-format is not installed: ${files.length} C++ files not looked at (apt-get install clang-format)`,
    );
  } else {
    if (error) console.error(`clang-format did not run: ${error.message}`);
    process.exitCode = status ?? 1;
  }
}
