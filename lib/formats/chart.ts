/** Training curves as PNG files: Observable Plot draws them as SVG without a browser, sharp makes pixels of that. */

import { extname } from "node:path";
import { check } from "../errors.js";
import { save } from "./images.js";
import { loadSharpWithFonts, MONO, MONO_ADVANCE, SANS } from "./text.js";

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
  const sharp = await loadSharpWithFonts();
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
  const [Plot, { DOMImplementation, XMLSerializer }] = await Promise.all([
    import("@observablehq/plot"),
    import("@xmldom/xmldom"),
  ]);
  const top = series.length > 1 ? 80 : 56;
  const axis = { labelAnchor: "center", labelArrow: "none", color: "#333333", fontSize: 12, tickFormat } as const;
  const curves = series.map(({ name, points }, i) => {
    return { name, points: thinned(points, width, drawable), color: COLORS[i % COLORS.length] };
  });
  const middle = MARGIN.marginLeft + (width - MARGIN.marginLeft - MARGIN.marginRight) / 2;
  const text = (content: string, x: number, y: number, options: TextOptions) =>
    // From the frame's upper left corner, as marks without data are placed.
    Plot.text([content], { frameAnchor: "top-left", dx: x - MARGIN.marginLeft, dy: y - top, ...options });
  const svg = Plot.plot({
    // All that is asked of it is to create elements; the types want a browser's.
    document: new DOMImplementation().createDocument(null, "html", null) as never,
    ...{ width, height, marginTop: top, ...MARGIN },
    style: `font-family: ${SANS}`,
    x: { label: "step", tickSpacing: 100 },
    y: { label: valueName, type: logScale ? "log" : "linear", nice: true },
    marks: [
      Plot.frame({ ...paperInsets(top), fill: "#ffffff", stroke: "none" }),
      Plot.gridY({ stroke: "#dddddd", strokeOpacity: 1 }),
      Plot.axisX({ ...axis, labelOffset: 46 }),
      Plot.axisY({ ...axis, labelOffset: 72 }),
      ...curves.map(({ points, color }) =>
        // A single point has no line to be seen by.
        points.length === 1
          ? Plot.dot(points, { fill: color, r: 3 })
          : Plot.line(points, {
              x: ([x]) => x,
              y: ([, y]) => (drawable(y) ? y : Number.NaN),
              stroke: color,
              strokeWidth: 1.8,
            }),
      ),
      text(title ?? "", middle, 24, { fontSize: 18, fill: "#111111" }),
      ...(curves.length > 1 ? legendTexts(curves, middle) : []).map(({ content, x, fill }) =>
        text(content, x, 52, { textAnchor: "start", fontFamily: MONO, fontSize: LEGEND_SIZE, fill }),
      ),
    ],
  });
  return new XMLSerializer().serializeToString(svg as never);
}

const tickFormat = (value: number): string => value.toLocaleString("en", { maximumSignificantDigits: 6 });

type Points = Series["points"];

/**
 * Of the points that share a column of pixels those that show: the first, the lowest, the highest and the last of each
 * stretch without a gap. A line of a hundred thousand segments takes long to draw.
 */
export function thinned(points: Points, columns: number, drawable: (value: number) => boolean): Points {
  if (points.length <= 4 * columns) return points;
  const [start, end] = [points[0][0], points[points.length - 1][0]];
  const column = (i: number) => Math.floor((columns * (points[i][0] - start)) / (end - start || 1));
  const kept: (readonly [number, number])[] = [];
  for (let from = 0; from < points.length; ) {
    const shown = drawable(points[from][1]);
    let [lowest, highest, to] = [from, from, from];
    for (; to < points.length && column(to) === column(from) && drawable(points[to][1]) === shown; to++) {
      if (points[to][1] < points[lowest][1]) lowest = to;
      if (points[to][1] > points[highest][1]) highest = to;
    }
    const chosen = shown ? [from, Math.min(lowest, highest), Math.max(lowest, highest), to - 1] : [from];
    for (const i of new Set(chosen)) kept.push(points[i]);
    from = to;
  }
  return kept;
}

/** What surrounds the plot, but for its top. */
const MARGIN = { marginLeft: 80, marginRight: 32, marginBottom: 60 };

/** The frame's insets with which it fills the whole picture. */
const paperInsets = (top: number) => ({
  insetLeft: -MARGIN.marginLeft,
  insetRight: -MARGIN.marginRight,
  insetBottom: -MARGIN.marginBottom,
  insetTop: -top,
});

interface TextOptions {
  fill: string;
  fontSize: number;
  fontFamily?: string;
  textAnchor?: "start";
}

const LEGEND_SIZE = 13;
/** Characters between two names. */
const LEGEND_GAP = 3;

/** A dash in each series' colour and its name, in a row around `middle`. */
function legendTexts(curves: readonly { name: string; color: string }[], middle: number) {
  const advance = LEGEND_SIZE * MONO_ADVANCE;
  const lengths = curves.map(({ name }) => 2 + name.length);
  const total = lengths.reduce((a, b) => a + b + LEGEND_GAP) * advance;
  let x = middle - total / 2;
  return curves.flatMap(({ name, color }, i) => {
    const at = x;
    x += (lengths[i] + LEGEND_GAP) * advance;
    return [
      { content: "━", x: at, fill: color },
      { content: name, x: at + 2 * advance, fill: "#333333" },
    ];
  });
}
