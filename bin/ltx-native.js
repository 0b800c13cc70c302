#!/usr/bin/env node
// Hands over to dist/cli/main.js. Old syntax on purpose: an old Node must get as far as the message below.
var version = process.versions.node.split(".").map(Number);
if (version[0] < 20 || (version[0] === 20 && version[1] < 9)) {
  console.error(`ltx-native needs Node 20.9 or newer, this is ${process.version}`);
  process.exit(1);
}

var path = require("node:path");
var main = path.join(__dirname, "..", "dist", "cli", "main.js");
if (!require("node:fs").existsSync(main)) {
  console.error(
    `ltx-native is not built: ${main} is missing. In a checkout run ./setup.sh; else install the package anew`,
  );
  process.exit(1);
}

require(main)
  .main(process.argv.slice(2))
  .then(
    (code) => {
      process.exitCode = code;
    },
    (error) => {
      console.error(error);
      process.exitCode = 1;
    },
  );
