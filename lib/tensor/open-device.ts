/** Which devices there are, by name, and why one can't be used. */
import { show } from "../arguments.js";
import { check, LtxError } from "../errors.js";
import * as native from "../native.js";
import { Device } from "./device.js";
import { deviceSettings } from "./settings.js";

/** Why a backend can or cannot be used on this machine. */
export interface BackendStatus {
  name: string;
  available: boolean;
  /** What the backend says of itself, as JSON, or the reason why it is off. */
  detail: string;
}

/** The libraries of each kind of device, best first; those of one kind exclude each other. */
const libraries = { cuda: ["cuda"], cpu: ["cpu_avx512", "cpu_avx2"], emulator: ["emulator"] };
type Kind = keyof typeof libraries;

/** Kinds that `auto` may choose, best first. The emulator runs the CUDA sources on the host: a test tool, and slow. */
const automatic: readonly Kind[] = ["cuda", "cpu"];

const open = new Map<string, Device>();
const EXPECTED = "expected auto, cpu, cuda or cuda:N, where N counts the GPUs from 0";

/**
 * The device of that name: `cpu`, `cuda` (the same as `cuda:0`), `cuda:1` and so on, or `auto` for the best one that
 * works here, which the environment variable LTX_DEVICE may name instead.
 * @throws {LtxError} `unavailable` with the reason of each library that was tried; `invalid_argument` for another name.
 */
export function device(name = "auto"): Device {
  check(typeof name === "string", "invalid_argument", () => `unknown device ${show(name)}: ${EXPECTED}`);
  let found = open.get(name);
  if (!found) {
    found = name === "auto" ? best() : named(name);
    open.set(name, found);
  }
  return found;
}

function best(): Device {
  const wanted = process.env.LTX_DEVICE;
  if (wanted && wanted !== "auto") return named(wanted, "LTX_DEVICE names an ");
  const reasons: string[] = [];
  for (const kind of automatic) {
    try {
      return device(kind);
    } catch (error) {
      if ((error as LtxError).code !== "unavailable") throw error;
      reasons.push((error as Error).message);
    }
  }
  throw new LtxError("unavailable", reasons.reverse().join("\n"));
}

function named(name: string, prefix = ""): Device {
  const [, kind, number] = /^(cpu|cuda|emulator|cuda:(\d{1,4}))$/.exec(name) ?? [];
  if (!kind) {
    throw new LtxError("invalid_argument", `${prefix}unknown device ${JSON.stringify(name)}: ${EXPECTED}`);
  }
  if (number !== undefined || kind === "cuda") return gpu(Number(number ?? 0));
  return opened(kind as Kind, 0, kind);
}

function gpu(index: number): Device {
  return opened("cuda", index, `cuda:${index}`);
}

/** One object for each device, under whichever name it is asked for. */
function opened(kind: Kind, index: number, name: string): Device {
  const known = open.get(name) ?? usable(kind, index, name);
  open.set(name, known);
  return known;
}

const onHost = (kind: string): boolean => kind !== "cuda";

function usable(kind: Kind, index: number, name: string): Device {
  const settings = deviceSettings(onHost(kind));
  const found = native.backendLibraries();
  const reasons: string[] = [];
  const forced = process.env.LTX_CPU_ISA;
  for (const wanted of libraries[kind]) {
    const library = found.find((candidate) => candidate.name === wanted);
    if (!library || (forced && kind === "cpu" && wanted !== `cpu_${forced}`)) continue;
    try {
      return new Device(name, native.openLibrary(library.path, index, settings));
    } catch (error) {
      reasons.push(`${wanted}: ${(error as Error).message}`);
    }
  }
  throw new LtxError("unavailable", `device ${name} cannot be used: ${reasons.join("; ") || missing(kind)}`);
}

/** Why no library of a kind was found, and what to do. */
function missing(kind: Kind): string {
  const remedies = {
    cpu: "LTX_CPU_ISA may be avx2 or avx512; in a checkout run ./setup.sh",
    cuda: "build from source where the CUDA toolkit's nvcc is found, or name the library's folder in LTX_BACKEND_PATH",
    emulator: "it belongs to the tests of a checkout; name its folder in LTX_BACKEND_PATH",
  };
  const library = kind === "cpu" ? `cpu_${process.env.LTX_CPU_ISA || "avx2"}` : kind;
  return `no libltx_${library}.so in ${native.backendFolders().join(" or ")}; ${remedies[kind]}`;
}

/** Every backend library that is found, a GPU each for CUDA's, and whether it works here. Opens all of them. */
export function backends(): BackendStatus[] {
  const found = native.backendLibraries();
  const states = found.flatMap(({ name, path }) => {
    const states = [status(name, path, 0)];
    while (name === "cuda" && states[states.length - 1].available) {
      states.push(status(`cuda:${states.length}`, path, states.length));
    }
    return states.length > 1 ? states.slice(0, -1) : states; // the last one only ends the count
  });
  if (!found.some(({ name }) => name === "cuda"))
    states.push({ name: "cuda", available: false, detail: missing("cuda") });
  return states;
}

function status(name: string, path: string, index: number): BackendStatus {
  const settings = deviceSettings(onHost(name.split(":")[0]));
  try {
    return {
      name,
      available: true,
      detail: JSON.stringify(native.describe(native.openLibrary(path, index, settings))),
    };
  } catch (error) {
    return { name, available: false, detail: (error as Error).message };
  }
}
