/**
 * Steps that are recorded and replayed: on the GPU that LTX_DEVICE names, whose driver makes a graph of them, else on the
 * emulator, which stores the launches.
 */
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Initializer, type Parameter } from "../../lib/nn/index.js";
import { add, affine, gatherRows, linear, mean, normAct, normal, square } from "../../lib/ops/index.js";
import { Adam } from "../../lib/optim/index.js";
import { backward, type Device, device, keep, launch, noGrad, scope, Tensor } from "../../lib/tensor/index.js";
import { type Compiled, compileLibrary } from "../support/compiled.js";

const LIBRARIES = process.env.LTX_BACKEND_PATH ?? join(__dirname, "..", "..", "build", "emulator");

const NAME = process.env.LTX_DEVICE?.startsWith("cuda") ? process.env.LTX_DEVICE : "emulator";

/** The device that records, or why it can't be used. */
function openRecorder(): Device | string {
  process.env.LTX_BACKEND_PATH = LIBRARIES;
  try {
    return device(NAME);
  } catch (error) {
    return (error as Error).message;
  }
}

const opened = openRecorder();
const missing = typeof opened === "string" ? ` (skipped: npm run build:emulator makes it; ${opened})` : "";
const recorder = opened as Device;

const WIDTH = 16;
const LAYERS = 3;

interface Training {
  graphs?: boolean;
  steps?: number;
  /** Rows of step k's batch. */
  rows?: (k: number) => number;
  /** A factor that step k's loss is multiplied by. */
  factor?: (k: number) => number;
  /** Runs in mid-step, between forward and backward. */
  middle?: (k: number, hidden: Tensor) => void;
  /** Runs behind step k. */
  after?: (k: number, weights: readonly Parameter[]) => Promise<void> | void;
}

/** Losses and final weights of a small network whose input, noise and learning rate differ at each step. */
async function train(options: Training = {}): Promise<number[]> {
  const { graphs = true, steps = 8, rows = () => 6, factor = () => 1, middle, after } = options;
  recorder.stepGraphs = graphs;
  const init = new Initializer(recorder, 1);
  const weights = Array.from({ length: LAYERS }, () => init.uniform([WIDTH, WIDTH], 0.4));
  const optimizer = new Adam(weights, { lr: 1e-2, maxGradNorm: 1 });
  const results: number[] = [];
  for (let k = 0; k < steps; k++) {
    const loss = recorder.step(() =>
      scope(() => {
        const shape = [rows(k), WIDTH];
        const input = Float32Array.from({ length: shape[0] * WIDTH }, (_, i) => Math.sin(i + 7 * k));
        const noise = normal(shape, { seed: 1, step: k, purpose: 2 }, { device: recorder });
        let x = add(Tensor.from(input, shape, { device: recorder }), affine(noise, 0.1));
        for (const w of weights) x = linear(normAct(x, { kind: "rms_norm", activation: "silu" }), w);
        middle?.(k, x);
        const result = mean(square(affine(x, factor(k))));
        backward(result);
        optimizer.step(1e-2 / (k + 1));
        return result;
      }),
    );
    results.push(await loss.item());
    loss.dispose();
    await after?.(k, weights);
  }
  for (const w of weights) results.push(...(await w.read()));
  optimizer.dispose();
  for (const w of weights) w.dispose();
  recorder.stepGraphs = true;
  await recorder.synchronize();
  return results;
}

/** What the report counts from here on. */
function counted() {
  const { steps, replayed } = recorder.stepReport();
  return () => {
    const now = recorder.stepReport();
    return { steps: now.steps - steps, replayed: now.replayed - replayed };
  };
}

/** Trains with and without replays: the same bits. */
async function expectSame(options: Training): Promise<ReturnType<ReturnType<typeof counted>>> {
  const count = counted();
  const replayed = await train(options);
  const counts = count();
  expect(replayed.every(Number.isFinite)).toBe(true);
  expect(replayed).toEqual(await train({ ...options, graphs: false }));
  return counts;
}

describe.skipIf(missing !== "")(`steps on ${NAME}${missing}`, () => {
  it("are replayed from the fourth on, to the bit", async () => {
    let last = recorder.stepReport();
    const counts = await expectSame({
      after: () => {
        if (recorder.stepGraphs) last = recorder.stepReport();
      },
    });
    expect(counts.steps).toBe(8);
    expect(counts.replayed).toBeGreaterThanOrEqual(4);
    expect(last.reason).toBeNull();
    expect(last.recordedSegments).toBeGreaterThanOrEqual(1);
    // The step's own: noise and the optimizer.
    expect(last.eagerKernels).toBeGreaterThanOrEqual(2);
    expect(last.eagerKernels).toBeLessThan(10);
  });

  it("say that they warm up", async () => {
    const reasons: (string | null)[] = [];
    await train({ after: () => void reasons.push(recorder.stepReport().reason) });
    expect(reasons[0]).toMatch(/moved|first step|earlier step/);
    expect(reasons).toContain("seen 2 times; recorded at the third");
    expect(reasons).toContain("recorded in this step");
    expect(reasons.at(-1)).toBeNull();
  });

  it("go on after a read in mid-step", async () => {
    const values: Promise<unknown>[] = [];
    const reasons: (string | null)[] = [];
    const counts = await expectSame({
      steps: 10,
      middle: (k, x) => {
        if (k === 6) values.push(x.read());
      },
      after: () => void reasons.push(recorder.stepReport().reason),
    });
    expect(reasons[6]).toBe("a tensor was read in mid-step");
    expect(reasons[7]).toBeNull();
    expect(counts).toEqual({ steps: 10, replayed: expect.any(Number) });
    const [first, second] = await Promise.all(values);
    expect(first).toEqual(second);
  });

  it("keep recordings of several shapes", async () => {
    const counts = await expectSame({ steps: 14, rows: (k) => (k % 2 ? 4 : 6) });
    expect(counts.replayed).toBeGreaterThanOrEqual(6);
  });

  it("of too many shapes are not replayed, and say so", async () => {
    let reason: string | null = null;
    const counts = await expectSame({
      steps: 12,
      rows: (k) => k + 3,
      after: () => {
        if (recorder.stepGraphs) reason = recorder.stepReport().reason;
      },
    });
    expect(counts.replayed).toBe(0);
    expect(reason).toMatch(/^operand \d+ of \w+ has another shape$/);
  });

  it("replay what a changing scalar leaves", async () => {
    const changing = await expectSame({ steps: 10, factor: (k) => 1 + k / 10 });
    expect(changing.replayed).toBeGreaterThanOrEqual(3);
    const warmedUp = await expectSame({ steps: 12, factor: (k) => (k < 6 ? 1 : 1 + k / 10) });
    expect(warmedUp.replayed).toBeGreaterThanOrEqual(4);
  });

  it("see weights that were overwritten between them", async () => {
    const counts = await expectSame({
      steps: 10,
      after: (k, weights) => {
        if (k === 6) weights[1].write(new Float32Array(WIDTH * WIDTH).fill(0.05));
        if (k === 7) noGrad(() => weights[0].write(new Float32Array(WIDTH * WIDTH).fill(-0.05)));
      },
    });
    expect(counts.replayed).toBeGreaterThanOrEqual(6);
  });

  it("see weights that are overwritten within them", async () => {
    const other = new Initializer(recorder, 5).uniform([WIDTH, WIDTH], 0.4);
    const values = (k: number) => Float32Array.from({ length: WIDTH * WIDTH }, (_, i) => Math.sin(i + k));
    const run = async (graphs: boolean) => {
      recorder.stepGraphs = graphs;
      const results: number[] = [];
      other.write(values(-1));
      for (let k = 0; k < 8; k++) {
        const y = recorder.step(() =>
          noGrad(() =>
            scope(() => {
              let x = normal([4, WIDTH], { seed: 1, step: 1, purpose: 1 }, { device: recorder });
              for (let i = 0; i < 10; i++) x = linear(x, other);
              other.write(values(k));
              for (let i = 0; i < 10; i++) x = linear(affine(x, 0.1), other);
              return x;
            }),
          ),
        );
        results.push(...(await y.read()));
        y.dispose();
      }
      return results;
    };
    expect(await run(true)).toEqual(await run(false));
    other.dispose();
    recorder.stepGraphs = true;
  });

  it("settle although something stays behind at each", async () => {
    const kept: Tensor[] = [];
    const reasons: (string | null)[] = [];
    const counts = await expectSame({
      steps: 24,
      middle: (_, x) => {
        kept.push(keep(noGrad(() => affine(x, 1))));
      },
      after: () => void reasons.push(recorder.stepReport().reason),
    });
    expect(reasons.some((reason) => /^operand \d+ of \w+ moved$/.test(reason ?? ""))).toBe(true);
    expect(counts.steps).toBe(24);
    for (const tensor of kept) tensor.dispose();
  });

  it("are not replayed while kernels are measured", async () => {
    recorder.startProfile();
    const count = counted();
    await train();
    expect(count().replayed).toBe(0);
    expect(recorder.stepReport().reason).toBe("kernels are being measured");
    const profile = recorder.stopProfile();
    expect(profile.find(({ op }) => op === "linear")?.calls).toBe(8 * LAYERS);
  });

  it("report a failing kernel by its op, and go on", async () => {
    const x = Tensor.from([1, 2], [2], { device: recorder });
    const table = Tensor.from([1, 2], [2, 1], { device: recorder });
    const index = Tensor.from(Int32Array.of(7), [1], { device: recorder });
    const whole = Tensor.from([0], [1, 1], { device: recorder });
    const step = (bad: boolean) =>
      recorder.step(() => {
        for (let i = 0; i < 9; i++) launch("cast", [x, x], [1, 1]);
        if (bad) launch("gather_rows", [table, index, whole]);
        for (let i = 0; i < 9; i++) launch("cast", [x, x], [1, 1]);
      });
    const failure = { code: "native", message: expect.stringMatching(/^\[gather_rows\] index 7 /) };
    for (let k = 0; k < 4; k++) {
      // What doesn't depend on it is as without it.
      step(true);
      await expect(whole.read()).rejects.toMatchObject(failure);
      expect([...(await x.read())]).toEqual([19 + 18 * k, 20 + 18 * k]);
    }
    for (let k = 0; k < 4; k++) step(false);
    expect([...(await x.read())]).toEqual([145, 146]);
    expect(recorder.stepReport().reason).toBeNull();
    for (const tensor of [x, whole, table, index]) tensor.dispose();
  });

  it("that are replayed leave out what depends on a failure, and are replayed again once it is mended", async () => {
    const table = Tensor.from([1, 2, 3], [3, 1], { device: recorder });
    const index = Tensor.from(Int32Array.of(2), [1], { device: recorder });
    const other = Tensor.from([0], [1], { device: recorder });
    const steps: Promise<unknown>[] = [];
    const reasons: (string | null)[] = [];
    for (let k = 0; k < 12; k++) {
      const wrong = k === 6 || k === 7;
      index.write(Int32Array.of(wrong ? 3 + k : 2));
      const result = recorder.step(() =>
        scope(() => {
          let row = gatherRows(table, index);
          for (let i = 0; i < 10; i++) row = affine(row, 1, 1);
          for (let i = 0; i < 10; i++) launch("cast", [other, other], [1, 1]);
          return row;
        }),
      );
      steps.push(
        result.read().then(
          ([value]) => value,
          (error) => error.message,
        ),
      );
      await steps[k];
      result.dispose();
      reasons.push(recorder.stepReport().reason);
    }
    const failed = (index: number) => `[gather_rows] index ${index} at position 0 is outside the table's 3 rows`;
    expect(await Promise.all(steps)).toEqual([13, 13, 13, 13, 13, 13, failed(9), failed(10), 13, 13, 13, 13]);
    expect([...(await other.read())]).toEqual([120]);
    expect(reasons.slice(6, 8)).toEqual(["a kernel failed before", "a kernel failed before"]);
    expect([reasons[5], reasons[11]]).toEqual([null, null]);
    for (const tensor of [table, index, other]) tensor.dispose();
  });

  it("drop their recordings with the parameters", async () => {
    const before = recorder.stepReport().recordedSegments;
    let during = 0;
    await train({
      after: () => {
        during = recorder.stepReport().recordedSegments;
      },
    });
    expect(during).toBeGreaterThan(before);
    expect(recorder.stepReport().recordedSegments).toBe(before);
  });

  it("may be nested, fail and be switched off", async () => {
    const count = counted();
    expect(recorder.step(() => recorder.step(() => 7))).toBe(7);
    expect(() =>
      recorder.step(() => {
        throw new Error("planted");
      }),
    ).toThrow("planted");
    await recorder.synchronize();
    expect(count().steps).toBe(2);
    recorder.stepGraphs = false;
    expect(recorder.step(() => 8)).toBe(8);
    await recorder.synchronize();
    expect(count().steps).toBe(2);
    expect(recorder.stepReport().reason).toBe("switched off");
    recorder.stepGraphs = true;
  });

  describe("in processes", () => {
    let library: Compiled;
    beforeAll(() => {
      library = compileLibrary();
    });
    afterAll(() => library.remove());
    const prepare = `process.env.LTX_BACKEND_PATH = ${JSON.stringify(LIBRARIES)};`;
    const worker = (body: string) => `
      const { parentPort, workerData } = require("node:worker_threads");
      const tensor = require(workerData.tensor), ops = require(workerData.ops);
      const device = tensor.device(${JSON.stringify(NAME)});
      const step = (k, n) => device.step(() => tensor.scope(() => {
        let x = ops.normal([64], { seed: k, step: 1, purpose: 1 }, { device });
        for (let i = 0; i < n; i++) x = ops.affine(x, 0.5, 1);
        return x;
      }));
      ${body}`;
    const spawn = (body: string) => `
      const { Worker } = require("node:worker_threads");
      const workerData = { tensor: ${JSON.stringify(library.path("tensor/index.js"))}, ops: ${JSON.stringify(library.path("ops/index.js"))} };
      const worker = () => new Worker(${JSON.stringify(worker(body))}, { eval: true, workerData });`;

    it("end while a step is open", async () => {
      const { code, stderr } = await library.run(`${prepare}
        const device = tensor.device(${JSON.stringify(NAME)});
        const x = ops.full([1000], 1, { device });
        device.step(() => {
          for (let i = 0; i < 20000; i++) tensor.launch("cast", [x, x], [1, 1]);
          process.exit(0);
        });`);
      expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    });

    it("outlive a worker that is terminated within a step", async () => {
      const script = () =>
        spawn(`
          const x = ops.full([1000], 1, { device });
          for (let k = 0; k < 5; k++) step(k, 20);
          device.step(() => {
            parentPort.postMessage("inside");
            for (;;) tensor.launch("cast", [x, x], [1, 1]);
          });`);
      const { code, stdout, stderr } = await library.run(`${prepare}${script()}
        const device = tensor.device(${JSON.stringify(NAME)});
        const x = ops.full([4], 2, { device }), before = device.memory().live;
        const one = worker();
        one.on("message", async () => {
          await one.terminate();
          const values = await ops.affine(x, 3).read();
          console.log([...values].join(), device.memory().live / before);
        });`);
      expect({ code, stderr, stdout }).toEqual({ code: 0, stderr: "", stdout: "6,6,6,6 2\n" });
    });

    it("give two workers at once the values of one", async () => {
      const script = () =>
        spawn(`(async () => {
          let last;
          for (let k = 0; k < 40; k++) {
            const y = step(k, 30);
            last = [...await y.read()];
            y.dispose();
          }
          parentPort.postMessage(last);
        })();`);
      const { code, stdout, stderr } = await library.run(`${prepare}${script()}
        const result = () => new Promise((resolve, reject) => {
          const one = worker();
          one.on("message", resolve);
          one.on("error", reject);
        });
        (async () => {
          const both = await Promise.all([result(), result()]);
          const alone = await result();
          console.log(both.every((values) => values.join() === alone.join()), alone.length);
        })();`);
      expect({ code, stderr, stdout }).toEqual({ code: 0, stderr: "", stdout: "true 64\n" });
    });
  });
});

describe("steps on a device without recordings", () => {
  it("are plain calls", async () => {
    const cpu = device("cpu");
    expect(cpu.step(() => 7)).toBe(7);
    expect(cpu.stepReport()).toMatchObject({ steps: 0, replayed: 0, reason: "cpu has no recordings" });
    expect(() => cpu.step(async () => 7)).toThrow("[step] the body must be synchronous");
  });
});
