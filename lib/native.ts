/**
 * The typed face of the addon: the only file that loads it. Arguments are checked above (lib/tensor, lib/ops); here a
 * tensor is its number.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { isMainThread } from "node:worker_threads";
import { type ErrorCode, LtxError } from "./errors.js";

/** The order is that of LtxDtype in native/runtime/backend.h. */
export const dtypes = ["f32", "bf16", "i32", "u8"] as const;
export type DType = (typeof dtypes)[number];
/** The number that stands for each. */
export const dtypeIndex = indexed(dtypes);

/** The order is that of MemoryGroup in native/runtime/allocator.h. */
export const memoryGroups = ["activations", "parameters", "gradients", "optimizer", "data"] as const;
export type MemoryGroup = (typeof memoryGroups)[number];
export const memoryGroupIndex = indexed(memoryGroups);

function indexed<T extends string>(names: readonly T[]): Readonly<Record<T, number>> {
  return Object.fromEntries(names.map((name, index) => [name, index])) as Record<T, number>;
}

/** Element types in files that are loaded as they lie; the order is that of FileDtype in native/runtime/mapped_file.h. */
export const fileDtypes = ["F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"] as const;

/** Bytes on one device, over all users in the process. */
export interface MemoryStats {
  live: number;
  cached: number;
  peak: number;
  limit: number;
  allocations: number;
  groups: Record<MemoryGroup, number>;
}

/** How a device is opened; a device that is open already stays as it is. */
export interface DeviceSettings {
  /** Bytes that may be handed out, and what says so, for messages; null for all that there is. */
  limit: number | null;
  limitedBy: string;
  /** For OpenMP unless OMP_NUM_THREADS is set; null for its own default. */
  threads: number | null;
  /** Threads sleep while they wait. */
  passive: boolean;
}

/** How replaying steps goes on one device, for one user of it; `eagerKernels` and `reason` are about the last step. */
export interface StepReport {
  steps: number;
  /** Steps of which everything recordable was replayed. */
  replayed: number;
  /** Recordings that are kept. */
  recordedSegments: number;
  /** Kernels that were launched one by one. */
  eagerKernels: number;
  /** Why it was not replayed. */
  reason: string | null;
}

interface Addon {
  interfaceVersion: number;
  ops(): [name: string, operands: string, scalars: string][];
  open(library: string, index: number, limit: number, limitedBy: string, threads: number, passive: boolean): number;
  bind(ids: Int32Array, scalars: Float64Array): void;
  empty(device: number, dtype: number, group: number, dims: number): number;
  view(id: number, dims: number, offset: number): number;
  release(id: number): void;
  markParameter(id: number): void;
  upload(id: number, data: NodeJS.TypedArray): void;
  mapFile(path: string, descriptor: number): number;
  unmapFile(file: number): void;
  load(id: number, file: number, offset: number, dtype: number, outer: number, a: number, b: number): void;
  run(op: number, tensors: number, scalars: number): void;
  read(id: number): Promise<ArrayBuffer>;
  ready(id: number): Promise<void>;
  synchronize(device: number): Promise<void>;
  stop(): void;
  beginStep(device: number): boolean;
  endStep(device: number): void;
  stepReport(device: number): StepReport;
  memory(device: number): MemoryStats;
  resetPeak(device: number): void;
  setLimit(device: number, bytes: number): void;
  describe(device: number): string;
  profiling(device: number, on: boolean): void;
  profile(device: number): [op: string, seconds: number, calls: number][];
}

/** The folder of package.json: one above lib/ and dist/. */
export const packageRoot = join(__dirname, "..");

/** The numbers of a call stand here, so that passing them takes no call each. */
const ids = new Int32Array(65536);
const scalars = new Float64Array(256);

interface Loaded {
  addon: Addon;
  folder: string;
  opIndex: ReadonlyMap<string, number>;
}
let loaded: Loaded | undefined;

/** Loaded when it is first used: errors, configurations and the like can be had on any machine. */
function native(): Loaded {
  loaded ??= load();
  return loaded;
}

function load(): Loaded {
  try {
    const find = require("node-gyp-build") as ((root: string) => Addon) & { path(root: string): string };
    const folder = dirname(find.path(packageRoot));
    const addon = find(packageRoot);
    // `process.exit` and errors that nobody caught tear down what kernels use without an end of this environment.
    if (isMainThread) process.prependListener("exit", () => addon.stop());
    addon.bind(ids, scalars);
    return { addon, folder, opIndex: new Map(addon.ops().map(([name], index) => [name, index])) };
  } catch (cause) {
    const reason = (cause as Error).message.split("\n")[0];
    throw new LtxError("unavailable", `the native addon could not be loaded: ${reason}\n${remedy()}`, { cause });
  }
}

function remedy(): string {
  if (existsSync(join(packageRoot, "binding.gyp"))) {
    return "In a checkout run ./setup.sh; prebuilt binaries exist for Linux x64 with glibc 2.34 or newer.";
  }
  return (
    "This code is no longer in its package, so it was probably bundled: leave ltx-native out of the bundle " +
    '(esbuild: --external:ltx-native; Next.js: serverExternalPackages: ["ltx-native"]).'
  );
}

/** Addon errors carry a code; anything else is `native`. */
function translate<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw wrap(error);
  }
}

function wrap(error: unknown): LtxError {
  if (error instanceof LtxError) return error; // the addon could not be loaded
  const { code, message } = error as { code?: string; message: string };
  const known: ErrorCode[] = [
    "out_of_memory",
    "disposed",
    "invalid_argument",
    "shape_mismatch",
    "dtype_mismatch",
    "io",
  ];
  return new LtxError(known.find((k) => k === code) ?? "native", message, { cause: error });
}

/**
 * Opens the device of that index of a backend's library; the number is its handle. Throws with the reason when it can't
 * be used.
 */
export function openLibrary(path: string, index: number, settings: DeviceSettings): number {
  const { limit, limitedBy, threads, passive } = settings;
  return translate(() => native().addon.open(path, index, limit ?? -1, limitedBy, threads ?? 0, passive));
}

/** Where backend libraries are looked for: where LTX_BACKEND_PATH (colon-separated) says, then beside the addon. */
export function backendFolders(): string[] {
  return [...(process.env.LTX_BACKEND_PATH ?? "").split(":").filter((path) => path !== ""), native().folder];
}

/** The backend libraries `libltx_<name>.so`; the first folder that has a name counts. */
export function backendLibraries(): { name: string; path: string }[] {
  const found = new Map<string, string>();
  for (const parent of backendFolders().filter((path) => statSync(path, { throwIfNoEntry: false })?.isDirectory())) {
    for (const file of readdirSync(parent)) {
      const name = /^libltx_(\w+)\.so$/.exec(file)?.[1];
      if (name && !found.has(name)) found.set(name, resolve(parent, file));
    }
  }
  return [...found].map(([name, path]) => ({ name, path }));
}

export function empty(device: number, dtype: DType, group: MemoryGroup, shape: readonly number[]): number {
  for (let i = 0; i < shape.length; i++) scalars[i] = shape[i];
  return translate(() => native().addon.empty(device, dtypeIndex[dtype], memoryGroupIndex[group], shape.length));
}

export function view(id: number, shape: readonly number[], offset: number): number {
  for (let i = 0; i < shape.length; i++) scalars[i] = shape[i];
  return translate(() => native().addon.view(id, shape.length, offset));
}

/** Queues a kernel. 0 stands for an operand that is left out. */
export function run(op: string, tensors: readonly number[], values: readonly number[]): void {
  const index = native().opIndex.get(op);
  if (index === undefined) throw new LtxError("native", `no op named ${op}`);
  if (tensors.length > ids.length) throw new LtxError("native", `[${op}] more than ${ids.length} operands`);
  for (let i = 0; i < tensors.length; i++) ids[i] = tensors[i];
  for (let i = 0; i < values.length; i++) scalars[i] = values[i];
  translate(() => native().addon.run(index, tensors.length, values.length));
}

export async function read(id: number): Promise<ArrayBuffer> {
  try {
    return await native().addon.read(id);
  } catch (error) {
    throw wrap(error);
  }
}

/** Resolves when it has been made. */
export async function ready(id: number): Promise<void> {
  try {
    await native().addon.ready(id);
  } catch (error) {
    throw wrap(error);
  }
}

export async function synchronize(device: number): Promise<void> {
  try {
    await native().addon.synchronize(device);
  } catch (error) {
    throw wrap(error);
  }
}

/** Maps an open file for reading; `path` stands in messages. Null where that can't be done, as on some network file systems. */
export function mapFile(path: string, descriptor: number): number | null {
  const { addon } = native();
  try {
    return addon.mapFile(path, descriptor);
  } catch {
    return null;
  }
}

export const unmapFile = (file: number): void => translate(() => native().addon.unmapFile(file));

/**
 * Queues the conversion of a tensor in a mapped file to the dtype of one on a device. `type` is an index into
 * {@link fileDtypes}; what is (outer, a, b) in the file becomes (outer, b, a).
 */
export function loadMapped(
  id: number,
  file: number,
  offset: number,
  type: number,
  [outer, a, b]: readonly [number, number, number],
): void {
  translate(() => native().addon.load(id, file, offset, type, outer, a, b));
}

export const upload = (id: number, data: NodeJS.TypedArray): void => translate(() => native().addon.upload(id, data));
export const release = (id: number): void => translate(() => native().addon.release(id));
export const markParameter = (id: number): void => translate(() => native().addon.markParameter(id));
/** Whether the device can record; only then the step is to be ended. */
export const beginStep = (device: number): boolean => native().addon.beginStep(device);
export const endStep = (device: number): void => native().addon.endStep(device);
export const stepReport = (device: number): StepReport => native().addon.stepReport(device);
export const memory = (device: number): MemoryStats => native().addon.memory(device);
export const resetPeak = (device: number): void => native().addon.resetPeak(device);
export const setLimit = (device: number, bytes: number): void =>
  translate(() => native().addon.setLimit(device, bytes));
export const describe = (device: number): Record<string, string | number> =>
  JSON.parse(native().addon.describe(device));
export const profiling = (device: number, on: boolean): void => native().addon.profiling(device, on);
export const profile = (device: number): [op: string, seconds: number, calls: number][] =>
  native().addon.profile(device);
export const ops = (): [name: string, operands: string, scalars: string][] => native().addon.ops();
