/** Training curves as PNG files, drawn by ECharts on the server side (no browser, no canvas) and rasterised by sharp. */

import { extname } from "node:path";
import { check } from "../errors.js";
import { save } from "./images.js";
import { loadSharp, SANS } from "./text.js";

export interface Series {
  readonly name: string;
  /** Step and value pairs in ascending step. A value that is not finite leaves a gap. */
  readonly points: readonly (readonly [step: number, value: number])[];
}

export interface ChartOptions {
  title?: string;
  /** Pixels; default 960 by 540. */
  width?: number;
  height?: number;
  /** Logarithmic value axis; values of 0 and below then leave gaps. Default false. */
  logScale?: boolean;
  /** What the value axis shows; default "loss". */
  valueName?: string;
}

// Okabe and Ito's colours, told apart by colour-blind readers too; without their yellow, which is faint on white.
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"];

/**
 * Draws `series` over the training step and writes a PNG, which appears whole or not at all.
 * @throws LtxError `invalid_argument` for wrong arguments, `io` when the file cannot be written
 */
export async function saveLossCurve(
  path: string,
  series: readonly Series[],
  options: ChartOptions = {},
): Promise<void> {
  check(
    extname(path).toLowerCase() === ".png",
    "invalid_argument",
    () => `[chart] a chart is written as PNG; give ${path} the extension .png`,
  );
  const svg = await drawLossCurve(series, options);
  const sharp = await loadSharp();
  await save(path, await sharp(Buffer.from(svg), { limitInputPixels: false }).png().toBuffer());
}

/**
 * The chart as an SVG document.
 * @throws LtxError `invalid_argument`
 */
export async function drawLossCurve(series: readonly Series[], options: ChartOptions = {}): Promise<string> {
  const { title, width = 960, height = 540, logScale = false, valueName = "loss" } = options;
  for (const [name, value] of Object.entries({ width, height })) {
    check(
      Number.isInteger(value) && value >= 200 && value <= 10000,
      "invalid_argument",
      () => `[chart] ${name} must be a whole number of pixels from 200 to 10000, got ${value}`,
    );
  }
  const drawable = (value: number) => Number.isFinite(value) && (!logScale || value > 0);
  for (const { name, points } of series) {
    check(
      points.every(([step], i) => Number.isFinite(step) && (i === 0 || step >= points[i - 1][0])),
      "invalid_argument",
      () => `[chart] the steps of series "${name}" must be finite and ascending`,
    );
  }
  check(
    series.some(({ points }) => points.some(([, value]) => drawable(value))),
    "invalid_argument",
    () => `[chart] there is no ${logScale ? "positive" : "finite"} value to draw in ${series.length} series`,
  );

  // Large, and needed only here: loaded when the first chart is drawn.
  const { init } = await import("echarts");
  const chart = init(null, null, { renderer: "svg", ssr: true, width, height });
  try {
    const nameStyle = { fontSize: 14, color: "#333333" };
    const axis = {
      nameTextStyle: nameStyle,
      axisLabel: { fontSize: 12, color: "#333333" },
      nameLocation: "middle",
    } as const;
    chart.setOption({
      animation: false,
      backgroundColor: "#ffffff",
      color: COLORS,
      textStyle: { fontFamily: SANS },
      title: {
        text: title,
        left: "center",
        top: 12,
        textStyle: { fontSize: 18, fontWeight: "normal", color: "#111111" },
      },
      legend: {
        show: series.length > 1,
        top: 44,
        icon: "roundRect",
        itemWidth: 18,
        itemHeight: 4,
        itemGap: 30,
        textStyle: { fontSize: 13 },
        data: series.map(({ name }) => name),
      },
      grid: { left: 80, right: 32, top: series.length > 1 ? 80 : 56, bottom: 60 },
      xAxis: {
        ...axis,
        type: "value",
        name: "step",
        nameGap: 32,
        min: "dataMin",
        max: "dataMax",
        splitLine: { show: false },
      },
      yAxis: { ...axis, type: logScale ? "log" : "value", name: valueName, nameGap: 56, scale: true },
      series: series.map(({ name, points }) => ({
        name,
        type: "line",
        // A single point has no line to be seen by.
        showSymbol: points.length === 1,
        sampling: "lttb",
        lineStyle: { width: 1.8 },
        data: points.map(([step, value]) => [step, drawable(value) ? value : null]),
      })),
    });
    return chart.renderToSVGString();
  } finally {
    chart.dispose();
  }
}
