import type { KernelLine } from "./lines.js";

const WIDTHS = [24, 36, 5, 10, 9, 10, 9, 10, 6];
const row = (cells: readonly string[]) =>
  cells
    .map((cell, i) => (i < 3 ? cell.padEnd(WIDTHS[i]) : cell.padStart(WIDTHS[i] ?? 0)))
    .join(" ")
    .trimEnd();

export const HEAD = row(["op", "problem", "dtype", "ours us", "GB/s", "GFLOP/s", "ceiling %", "peer us", "ratio"]);

/** Errors and the peer's variant stand behind the numbers. */
export function tableRow(line: KernelLine): string {
  const { op, problem, dtype, seconds, peer_s, fraction, ratio, error, peer_error, peer_variant } = line;
  const micro = (s: number | null) => (s === null ? "" : (s * 1e6).toFixed(1));
  const share = fraction === null ? "" : (100 * fraction).toFixed(1);
  const rates = [line["GB/s"]?.toFixed(1) ?? "", line["GFLOP/s"]?.toFixed(1) ?? ""];
  const numbers = [micro(seconds), ...rates, share, micro(peer_s), ratio?.toFixed(2) ?? ""];
  const notes = [error && `ours: ${error}`, peer_error && `peer: ${peer_error}`, peer_variant].filter(Boolean);
  return `${row([op, problem, dtype, ...numbers])}  ${notes.map((note) => String(note).split("\n")[0]).join("; ")}`.trimEnd();
}
