/** report.json as a page to read. */
import type { KernelLine } from "../kernels/lines.js";
import type { StepLine } from "../run.js";
import { PART_NAMES, type Report } from "./report.js";

const cell = (value: unknown) =>
  String(value ?? "")
    .replaceAll("|", "\\|")
    .replaceAll("\n", " ");
const table = (head: readonly string[], rows: readonly (readonly unknown[])[]): string[] => [
  `| ${head.join(" | ")} |`,
  `| ${head.map(() => "---").join(" | ")} |`,
  ...rows.map((row) => `| ${row.map(cell).join(" | ")} |`),
];

const time = (s: number | null) => {
  if (s === null) return "";
  if (s < 1e-3) return `${(s * 1e6).toFixed(1)} us`;
  return s < 1 ? `${(s * 1e3).toFixed(2)} ms` : `${s.toFixed(3)} s`;
};
const share = (fraction: number | null) => (fraction === null ? "" : `${(100 * fraction).toFixed(0)} %`);
const size = (bytes: number | null) => (bytes === null ? "" : `${(bytes / 2 ** 20).toFixed(1)} MiB`);
const both = (ours: number | null, peer: number | null) => [size(ours), size(peer)].filter(Boolean).join(" / ");
const giga = (rate: number | null | undefined) => (rate ? (rate / 1e9).toFixed(0) : "not measured");

const HEAD = [
  "name",
  "dtype",
  "shape",
  "ours",
  "PyTorch",
  "its variant",
  "ratio",
  "of the ceiling",
  "memory, ours / its",
];

function kernelRow(line: KernelLine): unknown[] {
  const { op, dtype, problem, seconds, peer_s, peer_variant, ratio, fraction, error, peer_error } = line;
  return [
    ...[op, dtype, problem, error ?? time(seconds), peer_error ?? time(peer_s), peer_variant],
    ...[ratio?.toFixed(2), share(fraction), both(line.extra_bytes, line.peer_extra_bytes)],
  ];
}

function stepRow(line: StepLine, report: Report): unknown[] {
  const { name, dtype, batch, ours_s, peer_s, peer, ratio, error, peer_error } = line;
  const ceiling = report.ceilings?.flops[dtype];
  const rate = line["GFLOP/s"];
  return [
    ...[name, dtype, `batch ${batch}`, error ?? time(ours_s), peer_error ?? time(peer_s), peer?.split("threads, ")[1]],
    ratio?.toFixed(2),
    share(ceiling && rate ? (1e9 * rate) / ceiling : null),
    both(line.peak_bytes, line.peer_peak_bytes),
  ];
}

export function markdown(report: Report): string {
  const { gpu, tests, ceilings, about, kernels, steps } = report;
  const facts = [
    ["date", report.date],
    ["device", report.device],
    ["GPU", gpu ? `${gpu.name}, ${size(gpu.totalBytes)}` : "none found"],
    ["driver", gpu?.driver ?? ""],
    ["machine", report.machine],
    ["ltx-native", `${report.version}${report.commit ? `, commit ${report.commit}` : ""}`],
    ["our device", JSON.stringify(about.ours)],
    ["PyTorch", typeof about.peer === "string" ? about.peer : JSON.stringify(about.peer)],
  ];
  const parts = PART_NAMES.flatMap((name) => {
    const part = report.parts[name];
    return part ? [[name, part.state, `${part.seconds.toFixed(0)} s`, part.reason]] : [];
  });
  const lines = ["# Report of one machine", "", ...table(["", ""], facts), ""];
  lines.push("## Parts", "", ...table(["part", "state", "took", "why"], parts), "");
  if (tests) {
    lines.push("## Tests", "", `${tests.passed} passed, ${tests.failed} failed, ${tests.skipped} skipped.`, "");
    if (tests.unfinished.length) lines.push(`Not finished: ${tests.unfinished.join(", ")}.`, "");
    const failures = tests.failures.map(({ file, name, error }) => [file, name, error]);
    if (failures.length) lines.push(...table(["file", "test", "error"], failures), "");
  }
  if (ceilings) {
    lines.push(
      "## Ceilings",
      "",
      "The most that ours or PyTorch's reached: of the large copy and the large product.",
      "",
    );
    const { f32, bf16 } = ceilings.flops;
    const values = [giga(ceilings.bandwidth), giga(f32), giga(bf16)];
    lines.push(...table(["copy GB/s", "f32 GFLOP/s", "bf16 GFLOP/s"], [values]), "");
  }
  if (steps.length) {
    const note = "Of the ceiling: the products' operations at the rate of the large product. Memory: peak of tensors.";
    lines.push(
      "## Steps",
      "",
      note,
      "",
      ...table(
        HEAD,
        steps.map((line) => stepRow(line, report)),
      ),
      "",
    );
  }
  if (kernels.length) {
    const note =
      "Of the ceiling: what bytes or operations need at least, over the time taken. Memory: beyond the operands.";
    lines.push("## Kernels", "", note, "", ...table(HEAD, kernels.map(kernelRow)), "");
  }
  return `${lines.join("\n")}`;
}
