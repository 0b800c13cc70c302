import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, describe, expect, it } from "vitest";
import { LtxError } from "../../lib/errors.js";
import { drawLossCurve, type Series, saveLossCurve, thinned } from "../../lib/formats/chart.js";

const folder = mkdtempSync(join(tmpdir(), "ltx-chart-"));
afterAll(() => rmSync(folder, { recursive: true }));

const decay = (name: string): Series => ({
  name,
  points: Array.from({ length: 50 }, (_, i) => [i * 10, Math.exp(-i / 10)] as const),
});

/** Pixels of about the colour of the first series. */
async function bluePixels(path: string): Promise<[x: number, y: number][]> {
  const { data, info } = await sharp(path).removeAlpha().raw().toBuffer({ resolveWithObject: true });
  const found: [number, number][] = [];
  for (let i = 0; i < data.length; i += 3) {
    if (Math.abs(data[i] - 0x00) + Math.abs(data[i + 1] - 0x72) + Math.abs(data[i + 2] - 0xb2) < 60) {
      found.push([(i / 3) % info.width, Math.floor(i / 3 / info.width)]);
    }
  }
  return found;
}

describe("saveLossCurve", () => {
  it("draws a falling curve from left to right", async () => {
    const path = join(folder, "loss.png");
    await saveLossCurve(path, [decay("loss")], { title: "VAE", width: 640, height: 360 });
    const { width, height } = await sharp(path).metadata();
    expect([width, height]).toEqual([640, 360]);
    const curve = (await bluePixels(path)).sort((a, b) => a[0] - b[0]);
    const [first, last] = [curve[0], curve.at(-1) as [number, number]];
    expect(last[0] - first[0]).toBeGreaterThan(500);
    expect(last[1] - first[1]).toBeGreaterThan(200);
  });

  it("writes the title, the axes and a legend for several series", async () => {
    const svg = await drawLossCurve([decay("total"), decay("validation")], { title: "A <b> & c", valueName: "L1" });
    for (const text of ["A &lt;b&gt; &amp; c", "total", "validation", "step", "L1"]) expect(svg).toContain(`>${text}<`);
    expect(svg).toContain("DejaVu Sans");
    expect(await drawLossCurve([decay("total")])).not.toContain(">total<");
  });

  it("leaves gaps for what it cannot draw", async () => {
    const line = (values: number[], logScale = false) =>
      drawLossCurve([{ name: "a", points: values.map((value, i) => [i, value] as const) }], { logScale });
    const moves = (svg: string) => /stroke="#0072b2"[^>]*><path d="(M[^"]*)"/.exec(svg)?.[1].match(/M/g)?.length;
    expect(moves(await line([3, 2, 1, 2, 3]))).toBe(1);
    expect(moves(await line([3, 2, Number.NaN, 2, 3]))).toBe(2);
    expect(moves(await line([3, 2, 0, 2, 3], true))).toBe(2);
  });

  it("labels the axes with plain numbers", async () => {
    const points = [
      [0, 0.02],
      [12000, 2],
    ] as const;
    const svg = await drawLossCurve([{ name: "a", points }], { logScale: true });
    for (const label of ["0.02", "0.1", "1", "2", "12,000"]) expect(svg).toContain(`>${label}<`);
    const one = await drawLossCurve([{ name: "a", points: [[3, 2.5]] }]);
    for (const label of ["3", "2.5"]) expect(one).toContain(`>${label}<`);
  });

  it("draws of a long series what a column of pixels shows", async () => {
    const wave = (i: number) => (i === 41237 ? 9 : i === 70003 ? -9 : i === 5 ? Number.NaN : Math.sin(i));
    const points = Array.from({ length: 100_000 }, (_, i) => [i, wave(i)] as const);
    const few = thinned(points, 100, Number.isFinite);
    expect(few.length).toBeLessThanOrEqual(4 * 100 + 8);
    expect(few.length).toBeGreaterThan(300);
    expect(few.map(([step]) => step)).toEqual([...new Set(few.map(([step]) => step))].sort((a, b) => a - b));
    for (const step of [0, 4, 5, 6, 41237, 70003, 99_999]) expect(few).toContainEqual([step, wave(step)]);
    expect(thinned(points.slice(0, 400), 100, Number.isFinite)).toHaveLength(400);
  });

  it.each<[string, Series[], object, string]>([
    ["no series", [], {}, "there is no finite value to draw in 0 series"],
    ["only NaN", [{ name: "a", points: [[0, Number.NaN]] }], {}, "there is no finite value"],
    ["no positive value for a logarithm", [{ name: "a", points: [[0, 0]] }], { logScale: true }, "no positive value"],
    [
      "steps that go back",
      [
        {
          name: "a",
          points: [
            [1, 1],
            [0, 1],
          ],
        },
      ],
      {},
      'steps of series "a" must be finite and ascending',
    ],
    ["a tiny size", [decay("a")], { width: 10 }, "width must be a whole number of pixels from 200 to 10000, got 10"],
  ])("refuses %s", async (_, series, options, message) => {
    const error = await drawLossCurve(series, options).catch((e) => e);
    expect(error).toBeInstanceOf(LtxError);
    expect(error.message).toContain(message);
  });

  it("refuses other formats", async () => {
    await expect(saveLossCurve(join(folder, "x.svg"), [decay("a")])).rejects.toThrow("the extension .png");
  });
});
