import { Command, CommanderError, InvalidArgumentError } from "commander";
import { LtxError } from "../errors.js";
import { version } from "../version.js";
import { convertCommand } from "./convert.js";
import { evaluateCommand } from "./evaluate.js";
import { extendCommand } from "./extend.js";
import { generateCommand } from "./generate.js";
import { infoCommand } from "./info.js";
import { planCommand } from "./plan.js";
import { reconstructCommand } from "./reconstruct.js";
import { hyphenated } from "./release-options.js";
import { sampleCommand } from "./sample.js";
import { outputFailure, watchStreams, writeError } from "./streams.js";
import { trainCommand } from "./train.js";

const USAGE_CODES = ["config", "file_exists", "invalid_argument"];

/** Commands that know the official command's flags, which have underscores. */
const isRelease = (command: string | undefined): boolean => command === "generate" || command === "plan";

/** Runs the command line; @returns the exit code: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted. */
export async function main(argv: string[]): Promise<number> {
  watchStreams();
  const code = await run(argv);
  // What was asked for on standard output did not get there.
  return code === 0 && outputFailure() ? 1 : code;
}

/** A variable of the shell that is not set leaves nothing, which is no folder. */
function pathText(text: string): string {
  if (text === "") throw new InvalidArgumentError("expected a path, got nothing.");
  return text;
}

async function run(argv: string[]): Promise<number> {
  const program = new Command("ltx-native")
    .description("LTX-Video in Node.js: train, sample and inspect")
    .version(version)
    .showHelpAfterError("(ltx-native --help shows what there is)");
  const commands = [
    trainCommand(),
    sampleCommand(),
    extendCommand(),
    reconstructCommand(),
    evaluateCommand(),
    convertCommand(),
    generateCommand(),
    planCommand(),
    infoCommand(),
  ];
  for (const command of commands) program.addCommand(command);
  for (const option of commands.flatMap(({ options }) => options)) {
    if (/<(dir|path|file|folder)>/.test(option.flags) && !option.parseArg) option.argParser(pathText);
  }
  for (const command of [program, ...commands]) command.exitOverride();
  try {
    await program.parseAsync(isRelease(argv[0]) ? hyphenated(argv) : argv, { from: "user" });
    const ran = commands.find((command) => command.getOptionValue("exitCode") !== undefined);
    return (ran?.getOptionValue("exitCode") as number | undefined) ?? 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    if (error instanceof LtxError) {
      writeError(`ltx-native: ${error.message}`);
      if (error.code === "aborted") return 130;
      return USAGE_CODES.includes(error.code) ? 2 : 1;
    }
    // The operating system's refusals say what was tried and why it failed; a stack adds nothing.
    if (error instanceof Error && "syscall" in error) {
      writeError(`ltx-native: ${error.message}`);
      return 1;
    }
    throw error;
  }
}
