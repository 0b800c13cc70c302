/** The lines that the lab reports. */
import type { Ceilings } from "../floor.js";
import type { BenchDtype } from "../protocol.js";
import type { KernelCase } from "./case.js";
import type { LabReply } from "./protocol.js";

export interface KernelLine {
  kind: "kernel";
  op: string;
  problem: string;
  dtype: BenchDtype;
  seconds: number | null;
  bytes: number | null;
  flops: number;
  "GB/s": number | null;
  "GFLOP/s": number | null;
  /** The time that bytes or operations need at the ceilings, whichever is longer, over the time taken. */
  fraction: number | null;
  extra_bytes: number | null;
  peer_s: number | null;
  peer_variant: string | null;
  peer_others: Record<string, number | string> | null;
  peer_extra_bytes: number | null;
  /** peer / ours: above 1 we are faster. */
  ratio: number | null;
  error: string | null;
  peer_error: string | null;
}

export function lineOf(
  given: KernelCase,
  ours: LabReply,
  peer: LabReply | null,
  ceilings: Ceilings | null,
): KernelLine {
  const { op, problem, dtype, flops } = given;
  const mine = "error" in ours ? null : ours;
  const theirs = peer === null || "error" in peer ? null : peer;
  const { seconds = null, bytes = null, extra_bytes = null } = mine ?? {};
  const rate = (work: number | null) => (work && seconds ? work / seconds / 1e9 : null);
  return {
    kind: "kernel",
    ...{ op, problem, dtype, seconds, bytes, flops },
    "GB/s": rate(bytes),
    "GFLOP/s": rate(flops),
    fraction: ceilings && seconds && bytes !== null ? fraction(seconds, bytes, flops, dtype, ceilings) : null,
    extra_bytes,
    peer_s: theirs?.seconds ?? null,
    peer_variant: theirs?.variant ?? null,
    peer_others: theirs?.others ?? null,
    peer_extra_bytes: theirs?.extra_bytes ?? null,
    ratio: seconds && theirs ? theirs.seconds / seconds : null,
    error: "error" in ours ? ours.error : null,
    peer_error: peer && "error" in peer ? peer.error : null,
  };
}

/** The best of all lines: of those with operations their rate, of the others the bandwidth. */
export function ceilingsOf(lines: readonly KernelLine[]): Ceilings {
  const best = (wanted: (line: KernelLine) => boolean, work: (line: KernelLine) => number | null) => {
    const rates = lines.filter(wanted).flatMap((line) => {
      const done = work(line);
      const times = [line.seconds, line.peer_s].filter((s) => s !== null);
      return done && times.length ? [done / Math.min(...times)] : [];
    });
    return rates.length ? Math.max(...rates) : null;
  };
  const flops: Ceilings["flops"] = {};
  for (const dtype of ["f32", "bf16"] as const) {
    const found = best(
      (line) => line.flops > 0 && line.dtype === dtype,
      (line) => line.flops,
    );
    if (found !== null) flops[dtype] = found;
  }
  const bandwidth = best(
    (line) => line.flops === 0,
    (line) => line.bytes,
  );
  return { bandwidth, flops };
}

/** null where a ceiling that it needs was not measured. */
export function fraction(
  seconds: number,
  bytes: number,
  flops: number,
  dtype: BenchDtype,
  ceilings: Ceilings,
): number | null {
  const { bandwidth, flops: peaks } = ceilings;
  const peak = peaks[dtype];
  if (!bandwidth || (flops > 0 && !peak)) return null;
  return Math.max(bytes / bandwidth, peak ? flops / peak : 0) / seconds;
}
