#!/usr/bin/env node
// The import-direction lint: a file in lib/ may import from its own layer and from the layers below, never from above.
// Usage: check-imports.mjs [ROOT], ROOT being the folder that holds lib/ (default: this repository).
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, posix, relative, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

/** From the top of the house to its foundation. The names on one line stand beside each other. */
const layers = [
  ["entry.ts"],
  ["index.ts"],
  ["guard.ts"],
  ["cli"],
  ["pipelines", "training"],
  ["models", "losses", "diffusion", "data", "formats", "config"],
  ["nn", "optim"],
  ["ops"],
  ["tensor"],
  ["native.ts"],
  ["arguments.ts", "errors.ts", "file-kind.ts", "suggest.ts", "version.ts"],
];
const height = new Map(layers.flatMap((names, index) => names.map((name) => [name, layers.length - index])));

/** Layers that may import less than their height would allow. */
const only = new Map([["config", ["config", "arguments.ts", "errors.ts", "file-kind.ts", "suggest.ts"]]]);

/** What loads the addon, which only native.ts may do. */
const loadsAddon = (specifier) => /^(node-gyp-build|bindings)$|\.node$/.test(specifier);

/** The layer of a path inside lib/: its first folder, or its name for a file directly in lib/. */
const layerOf = (path) => path.split("/")[0];

const label = (layer) => (height.has(layer) || layer.includes("/") ? layer : `${layer} (in no layer)`);

/** Why a file of layer `from` may not import the layer `to`, or undefined if it may. */
function forbidden(from, to) {
  const allowed = height.has(from) && height.has(to) && height.get(to) <= height.get(from);
  const restricted = only.has(from) && !only.get(from).includes(to);
  return allowed && !restricted ? undefined : `layer ${label(from)} may not import layer ${label(to)}`;
}

/** Why a file of layer `from` may not load the addon, or undefined if it may. */
function forbiddenAddon(from) {
  return from === "native.ts" ? undefined : `layer ${label(from)} may not load the addon, only native.ts may`;
}

/** The layer that a specifier in `file` leads to; undefined for packages and for the package's own package.json. */
function target(file, specifier) {
  if (specifier === "ltx-native") return "index.ts";
  if (!/^\.{1,2}(\/|$)/.test(specifier)) return undefined;
  const path = posix.normalize(posix.join(posix.dirname(file), specifier)).replace(/\.js$/, ".ts");
  if (path === "../package.json") return undefined;
  if (path.startsWith("..")) return "outside lib/";
  return path === "." || path === "./" || path === "index" ? "index.ts" : layerOf(path);
}

function violations(lib, file) {
  const text = readFileSync(join(lib, file), "utf8");
  const from = layerOf(file);
  return ts.preProcessFile(text, true, true).importedFiles.flatMap(({ fileName: specifier, pos }) => {
    const to = target(file, specifier);
    const reason = loadsAddon(specifier) ? forbiddenAddon(from) : to && forbidden(from, to);
    const line = text.slice(0, pos).split("\n").length;
    return reason ? [`lib/${file}:${line} imports ${specifier}: ${reason}`] : [];
  });
}

const root = resolve(process.argv[2] ?? join(dirname(fileURLToPath(import.meta.url)), ".."));
const lib = join(root, "lib");
if (!existsSync(lib)) {
  console.error(
    `check-imports: ${relative(process.cwd(), lib) || lib} does not exist; give the folder that holds lib/`,
  );
  process.exit(2);
}
const files = readdirSync(lib, { recursive: true })
  .map((name) => name.split(sep).join("/"))
  .filter((name) => /\.[cm]?ts$/.test(name))
  .sort();
const found = files.flatMap((file) => violations(lib, file));
for (const line of found) console.error(line);
if (found.length > 0) console.error(`${found.length} forbidden import${found.length === 1 ? "" : "s"}`);
process.exitCode = found.length > 0 ? 1 : 0;
