/** What a run's exact numbers depend on besides its configuration: kept in checkpoints, compared when one is resumed. */
import type { Device } from "../tensor/index.js";
import { version } from "../version.js";

export type Environment = Record<string, string>;

/** What a device tells of itself that changes no number: the threads of a kernel don't, nor does the size of memory. */
const HARMLESS = ["threads", "memory"];

/** Package, backend, instruction set or GPU, and the libraries that compute. */
export function environmentOf(device: Device): Environment {
  const told = Object.entries(device.describe()).filter(([key]) => !HARMLESS.includes(key));
  const [backend] = device.name.split(":");
  return { version, backend, ...Object.fromEntries(told.map(([key, value]) => [key, String(value)])) };
}

/** The environment in a checkpoint's metadata, or null where it holds none, as those of earlier versions, or no such thing. */
export function parseEnvironment(text: string | undefined): Environment | null {
  try {
    const value: unknown = JSON.parse(text ?? "null");
    if (typeof value !== "object" || value === null || Array.isArray(value)) return null;
    return Object.fromEntries(Object.entries(value).filter(([, part]) => typeof part === "string"));
  } catch {
    return null;
  }
}

/** In one line why what follows is not the same to the bit as without the interruption; null where it is. */
export function differenceOf(then: Environment, now: Environment): string | null {
  const keys = [...new Set([...Object.keys(then), ...Object.keys(now)])].filter((key) => then[key] !== now[key]);
  if (keys.length === 0) return null;
  const changes = keys.map((key) => `${key} ${now[key] ?? "unknown"} instead of ${then[key] ?? "unknown"}`);
  return `resumed with ${changes.join(", ")}: results will not be the same to the bit as without the interruption`;
}
