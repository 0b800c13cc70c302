import { check } from "../errors.js";
import type { TensorEntry, TensorFile } from "./tensor-file.js";

/**
 * Tensors of another file under other names: those that `names` lists, from the name here to that in the file. Closing the
 * view closes the file.
 */
export function renamed(file: TensorFile, names: ReadonlyMap<string, string>): TensorFile {
  const nameIn = (name: string): string => {
    const own = names.get(name);
    check(own !== undefined, "invalid_argument", () => `[weights] there is no tensor "${name}"`);
    return own;
  };
  const tensors = new Map<string, TensorEntry>();
  for (const [name, own] of names) {
    const entry = file.tensors.get(own);
    if (entry) tensors.set(name, entry);
  }
  return {
    metadata: file.metadata,
    tensors,
    read: (name) => file.read(nameIn(name)),
    readF32: (name) => file.readF32(nameIn(name)),
    locate: (name) => file.locate?.(nameIn(name)),
    close: () => file.close(),
  };
}

/** The tensors of several files, whose names are all different, as one. */
export function joined(files: readonly TensorFile[], metadata: TensorFile["metadata"]): TensorFile {
  const holders = new Map(files.flatMap((file) => [...file.tensors.keys()].map((name) => [name, file] as const)));
  const holder = (name: string): TensorFile => {
    const file = holders.get(name);
    check(file, "invalid_argument", () => `[weights] there is no tensor "${name}"`);
    return file;
  };
  return {
    metadata,
    tensors: new Map(files.flatMap((file) => [...file.tensors])),
    read: (name) => holder(name).read(name),
    readF32: (name) => holder(name).readF32(name),
    locate: (name) => holder(name).locate?.(name),
    async close() {
      for (const file of files) await file.close();
    },
  };
}
