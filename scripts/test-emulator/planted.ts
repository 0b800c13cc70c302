import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { z } from "zod";
import { build, type Flavour, folderOf, must } from "./build.js";
import { replay } from "./run.js";

const schema = z.array(
  z
    .object({
      name: z.string(),
      /** Under cuda/; `unit` is the .cu file to compile where this is a header. */
      file: z.string(),
      unit: z.string().optional(),
      /** Stands once in the file. */
      find: z.string(),
      replace: z.string(),
      /** The ops whose calls must show it. */
      ops: z.array(z.string()).min(1),
      /** What must find it: results that differ (in some order of threads), or a sanitizer. */
      caught: z.array(z.enum(["plain", "address", "thread"])).min(1),
    })
    .strict(),
);
export type PlantedBug = z.infer<typeof schema>[number];
export const planted = (json: unknown): PlantedBug[] => schema.parse(json);

/** Builds the replay with the bug in it, in each flavour that must catch it; what is not caught is a problem. */
export function search(root: string, bug: PlantedBug, trace: string): string[] {
  return bug.caught.flatMap((flavour) => {
    const program = compile(root, bug, flavour);
    const found = flavour === "plain" ? /./ : /AddressSanitizer|runtime error|ThreadSanitizer/;
    for (const order of flavour === "plain" ? [0, 1, 2] : [0]) {
      const problem = replay(program, trace, { order, ops: bug.ops, first: true }).find((line) => found.test(line));
      if (!problem) continue;
      console.log(`planted: ${bug.name}, ${flavour}: ${problem}`);
      return [];
    }
    return [`${bug.name} was not caught (${flavour})`];
  });
}

function compile(root: string, bug: PlantedBug, flavour: Flavour): string {
  build(root, flavour, "ltx_emulator_replay");
  const folder = folderOf(root, flavour);
  const place = join(folder, "planted", bug.name.replaceAll(/\W+/g, "-"));
  rmSync(place, { recursive: true, force: true });
  mkdirSync(place, { recursive: true });
  cpSync(join(root, "cuda"), join(place, "cuda"), { recursive: true });
  symlinkSync(join(root, "native"), join(place, "native"));
  const file = join(place, "cuda", bug.file);
  const text = readFileSync(file, "utf8");
  const places = text.split(bug.find).length - 1;
  if (places !== 1)
    throw new Error(`${bug.name}: ${bug.file} has ${JSON.stringify(bug.find)} ${places} times, not once`);
  writeFileSync(
    file,
    text.replace(bug.find, () => bug.replace),
  );

  const unit = bug.unit ?? bug.file;
  const object = `CMakeFiles/ltx_emulated.dir/emulated/${unit}.cc.o`;
  const commands = JSON.parse(must("ninja", ["-C", folder, "-t", "compdb"])) as { output: string; command: string }[];
  const command = commands.find(({ output }) => output === object)?.command;
  if (!command) throw new Error(`${bug.name}: nothing compiles ${unit}`);
  const planted = join(place, "planted.o");
  const source = join(place, "planted.cc");
  writeFileSync(source, `#include "${join(place, "cuda", unit)}"\n`);
  must("sh", ["-c", `cd ${folder} && ${command.replace(/ -o \S+ -c \S+.*$/, "")} -o ${planted} -c ${source}`]);
  const objects = ["emulated", "cuda", "cuda/emulator"]
    .map((part) => join(folder, "CMakeFiles/ltx_emulated.dir", part))
    .filter((part) => existsSync(part))
    .flatMap((part) => readdirSync(part).map((name) => join(part, name)))
    .filter((path) => path.endsWith(".o") && basename(path) !== `${unit}.cc.o`);
  const replayObject = join(folder, "CMakeFiles/ltx_emulator_replay.dir/cuda/emulator/replay.cc.o");
  const sanitizers = { plain: [], address: ["-fsanitize=address,undefined"], thread: ["-fsanitize=thread"] }[flavour];
  const program = join(place, "replay");
  must("g++", [...sanitizers, planted, replayObject, ...objects, "-lpthread", "-ldl", "-o", program]);
  return program;
}
