const UNITS = ["", "k", "m", "g", "t"];

/**
 * The bytes that a size means: `2GB` (powers of 1000), `2GiB` and `2g` (powers of 1024), `1.5e9`; fractions of a byte are
 * dropped. Undefined for what is not a size of at least one byte.
 */
export function parseBytes(text: string): number | undefined {
  const match = /^\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([kmgt]?)(i?)(b?)\s*$/i.exec(text);
  if (!match) return undefined;
  const [, number, unit, binary, byte] = match;
  const power = UNITS.indexOf(unit.toLowerCase());
  if (binary !== "" && power === 0) return undefined;
  const bytes = Math.floor(Number(number) * (binary !== "" || byte === "" ? 1024 : 1000) ** power);
  return bytes >= 1 && Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** For messages: what {@link parseBytes} takes. */
export const BYTE_SIZES = "a number of bytes or a size such as 8GB, 8GiB or 512m";

/** A number of bytes for people: `1.9 GiB`, `640.0 KiB`. */
export function showBytes(bytes: number): string {
  if (bytes < 1024) return `${Math.floor(bytes)} bytes`;
  const unit = bytes < 2 ** 20 ? "KiB" : bytes < 2 ** 30 ? "MiB" : "GiB";
  return `${(bytes / { KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 }[unit]).toFixed(1)} ${unit}`;
}
