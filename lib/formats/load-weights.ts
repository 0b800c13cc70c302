/** Weights from a file straight into a module: one tensor at a time, never a second copy of the model. */
import { stopIfAborted } from "../errors.js";
import * as native from "../native.js";
import { Counter, checkState, fromCheckpoint, type Module, Parameter, type StateEntry } from "../nn/index.js";
import type { Tensor } from "../tensor/index.js";
import type { FilePlace, TensorEntry, TensorFile } from "./tensor-file.js";

export interface LoadProgressOptions {
  /** Stops between tensors. */
  signal?: AbortSignal;
  /** Called with the file's bytes that are loaded, and those that will be. */
  onProgress?: (done: number, total: number) => void;
}

/** After so many bytes it waits for those that were queued. */
const SYNC_BYTES = 256 * 2 ** 20;

export interface LoadWeightsOptions extends LoadProgressOptions {
  /** The file's name of a key of the module; the key itself unless given. */
  rename?: (key: string) => string;
  /** Keys that the file may lack; what they stand for stays as it is. */
  optional?: (key: string) => boolean;
  /** Tensors of the file, by its own names, that are left alone. */
  ignore?: (name: string) => boolean;
  /** What messages call the file: its path. */
  source?: string;
}

/**
 * Loads the whole state of a module. All keys and shapes are compared first; nothing is written unless they fit. Then
 * each tensor is converted to its parameter's dtype on its way from the file, which is mapped where it lies on disk as
 * it is (floats of 8, 16 and 32 bits in safetensors files), else read.
 * @throws {LtxError} `checkpoint` listing the first keys that are missing, unexpected or of another shape; `io`,
 *   `dtype_mismatch` from the file, and `aborted`, after which the module's values are not to be used
 */
export async function loadWeights(module: Module, file: TensorFile, options: LoadWeightsOptions = {}): Promise<void> {
  const { rename = (key) => key, optional, ignore = () => false, source, signal, onProgress = () => {} } = options;
  const mine = new Map(module.namedState());
  const names = new Map([...mine.keys()].map((key) => [key, rename(key)]));
  checkState(mine, entriesByKey(file, names, ignore), optional, source);
  const entries = [...mine.keys()].map((key) => file.tensors.get(names.get(key) as string));
  const total = entries.reduce((sum, entry) => sum + (entry?.byteLength ?? 0), 0);
  let [done, queued] = [0, 0];
  const maps = new FileMaps();
  try {
    for (const [key, item] of mine) {
      stopIfAborted(signal, "[load] stopped by the caller");
      const name = names.get(key) as string;
      const entry = file.tensors.get(name);
      if (!entry) continue;
      if (item instanceof Counter) item.value = (await file.readF32(name))[0];
      else if (!maps.load(item, entry, file.locate?.(name))) await read(item, file, name);
      queued += entry.byteLength;
      if (queued < SYNC_BYTES) continue;
      await maps.ready();
      [done, queued] = [done + queued, 0];
      onProgress(done, total);
    }
    await maps.ready();
    if (queued > 0) onProgress(total, total);
  } finally {
    maps.close();
  }
}

/** What the file holds for each key, and under its own names what nobody asked for. */
function entriesByKey(
  file: TensorFile,
  names: ReadonlyMap<string, string>,
  ignore: (name: string) => boolean,
): Map<string, TensorEntry> {
  const entries = new Map<string, TensorEntry>();
  for (const [key, name] of names) {
    const entry = file.tensors.get(name);
    if (entry) entries.set(key, entry);
  }
  const used = new Set(names.values());
  for (const [name, entry] of file.tensors) if (!used.has(name) && !ignore(name)) entries.set(name, entry);
  return entries;
}

async function read(item: Exclude<StateEntry, Counter>, file: TensorFile, name: string): Promise<void> {
  const values = await file.readF32(name);
  item.write(item instanceof Parameter ? fromCheckpoint(item, values) : values);
  // The copy is queued with the values that it is made from: they go before the next ones come.
  await item.ready();
}

/** The files that tensors are loaded from, mapped once each, by the descriptors with which their headers were read. */
class FileMaps {
  private readonly maps = new Map<number, number | null>();
  private queued: Tensor[] = [];

  /** Queues the conversion of a tensor; false when its bytes can't be mapped. */
  load(item: Exclude<StateEntry, Counter>, { dtype }: TensorEntry, place: FilePlace | undefined): boolean {
    const type = (native.fileDtypes as readonly string[]).indexOf(dtype);
    if (!place || type < 0) return false;
    let map = this.maps.get(place.descriptor);
    if (map === undefined) {
      map = native.mapFile(place.path, place.descriptor);
      this.maps.set(place.descriptor, map);
    }
    if (map === null) return false;
    native.loadMapped(item.handle, map, place.offset, type, checkpointAxes(item));
    this.queued.push(item);
    return true;
  }

  /** Waits for all that was queued. */
  async ready(): Promise<void> {
    const queued = this.queued;
    this.queued = [];
    await Promise.all(queued.map((item) => item.ready()));
  }

  /** What is queued keeps its file mapped. */
  close(): void {
    for (const map of this.maps.values()) if (map !== null) native.unmapFile(map);
  }
}

/** (outer, a, b) in the file, which is (outer, b, a) in memory. */
function checkpointAxes(item: Exclude<StateEntry, Counter>): [number, number, number] {
  if (!(item instanceof Parameter) || item.layout === "plain") return [1, 1, item.size];
  const [o, t, y, x, i] = item.shape;
  return [o, i, t * y * x];
}
