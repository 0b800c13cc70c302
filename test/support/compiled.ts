/** The library as plain JavaScript in a folder of its own, for child processes and worker threads. */
import { execFile } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { ModuleKind, ScriptTarget, transpileModule } from "typescript";

const root = join(__dirname, "..", "..");

export interface Compiled {
  /** Path of a module, e.g. `tensor/index.js`. */
  path(module: string): string;
  /** Runs a script that sees `tensor` and `ops`; resolves with its exit code (null after a signal) and its output. */
  run(script: string): Promise<{ code: number | null; stdout: string; stderr: string }>;
  remove(): void;
}

export function compileLibrary(): Compiled {
  const folder = mkdtempSync(join(tmpdir(), "ltx-compiled-"));
  for (const name of ["build", "prebuilds", "node_modules", "assets", "configs", "package.json"]) {
    if (readdirSync(root).includes(name)) symlinkSync(join(root, name), join(folder, name));
  }
  const files = readdirSync(join(root, "lib"), { recursive: true, encoding: "utf8" });
  const sources = files.filter((file) => file.endsWith(".ts"));
  for (const source of sources) {
    const target = join(folder, "lib", source.replace(/\.ts$/, ".js"));
    const { outputText } = transpileModule(readFileSync(join(root, "lib", source), "utf8"), {
      compilerOptions: { module: ModuleKind.CommonJS, target: ScriptTarget.ES2022, esModuleInterop: true },
    });
    mkdirSync(dirname(target), { recursive: true });
    writeFileSync(target, outputText);
  }
  const signatures = join(root, "dist", "signatures.json");
  if (existsSync(signatures)) copyFileSync(signatures, join(folder, "lib", "signatures.json"));
  symlinkSync("lib", join(folder, "dist")); // what package.json names: examples in the folder find the package
  const path = (module: string) => join(folder, "lib", module);
  const prelude = `const tensor = require(${JSON.stringify(path("tensor/index.js"))});
    const ops = require(${JSON.stringify(path("ops/index.js"))});\n`;
  return {
    path,
    run: (script) =>
      new Promise((resolve) => {
        const child = execFile(process.execPath, ["-e", prelude + script], (_, stdout, stderr) => {
          resolve({ code: child.exitCode, stdout, stderr });
        });
      }),
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}
