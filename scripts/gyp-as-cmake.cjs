#!/usr/bin/env node
// What the wrapper in binding.gyp runs: it builds by cmake-js, so that CMakeLists.txt stays the only description of the
// build. Always incremental: gyp works inside build/, which a clean rebuild would delete under it.
const { spawnSync } = require("node:child_process");
const path = require("node:path");

const root = path.join(__dirname, "..");
let cmakeJs;
try {
  cmakeJs = require.resolve("cmake-js/bin/cmake-js", { paths: [root] });
} catch {
  console.error(
    `ltx-native: no prebuilt addon fits this machine (${process.platform}-${process.arch}, Node ${process.version}), ` +
      "and the tools to compile one are not installed.\n" +
      "Prebuilt: Linux x64 with glibc 2.34 or newer. To compile, take a checkout of the sources and run ./setup.sh",
  );
  process.exit(1);
}
const { error, status } = spawnSync(process.execPath, [cmakeJs, "compile"], { cwd: root, stdio: "inherit" });
if (error) console.error(`ltx-native: cmake-js did not start: ${error.message}`);
process.exit(status ?? 1);
