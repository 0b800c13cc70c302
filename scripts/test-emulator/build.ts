import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";

/** `plain` is optimised; the others are built for a sanitizer. */
export type Flavour = "plain" | "address" | "thread";

export const folderOf = (root: string, flavour: Flavour): string => join(root, "build", `emulator-${flavour}`);

/** Runs a program to its end and throws with its output when it fails. */
export function must(command: string, args: string[], env: NodeJS.ProcessEnv = {}): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    encoding: "utf8",
    env: { ...process.env, ...env },
    maxBuffer: 1 << 28,
  });
  if (error) throw new Error(`${command} did not run: ${error.message}`);
  if (status !== 0) throw new Error(`${command} ${args.join(" ")} failed:\n${stdout}${stderr}`);
  return stdout;
}

/** Builds one target in a folder of its own and returns the path of what came of it. */
export function build(root: string, flavour: Flavour, target: "ltx_emulator" | "ltx_emulator_replay"): string {
  const folder = folderOf(root, flavour);
  if (!existsSync(join(folder, "build.ninja"))) {
    const sanitizer = flavour === "plain" ? [] : [`-DLTX_SANITIZE=${flavour}`, "-DCMAKE_BUILD_TYPE=None"];
    must("cmake", ["-G", "Ninja", "-S", root, "-B", folder, "-DLTX_CUDA=OFF", ...sanitizer]);
  }
  must("ninja", ["-C", folder, target]);
  return join(folder, "emulator", target === "ltx_emulator" ? "libltx_emulator.so" : target);
}
