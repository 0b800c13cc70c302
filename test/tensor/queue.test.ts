import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { affine, full, gatherRows } from "../../lib/ops/index.js";
import { device, launch, scope, Tensor } from "../../lib/tensor/index.js";
import { type Compiled, compileLibrary } from "../support/compiled.js";
import { expectError, liveBytes, some } from "../support/gradcheck.js";

describe("the queue", () => {
  it("takes more work than it holds", async () => {
    const x = full([1], 0);
    for (let i = 0; i < 20_000; i++) launch("cast", [x, x], [1, 1]);
    expect(await x.item()).toBe(20_000);
    x.dispose();
  });

  it("does not block: calls return while work is pending", async () => {
    // A GPU is done with a small tensor before the timer can tick: take the first size that keeps the device busy.
    for (let size = 2 ** 20, busy = 0; busy < 20 && size <= 2 ** 28; size *= 4) {
      const x = full([size], 1);
      await device().synchronize();
      let ticks = 0;
      const timer = setInterval(() => ticks++, 1);
      const begun = performance.now();
      for (let i = 0; i < 200; i++) launch("unary", [x, x], [10, 0, 0]);
      await device().synchronize();
      busy = performance.now() - begun;
      clearInterval(timer);
      if (busy >= 20) expect(ticks).toBeGreaterThan(3);
      x.dispose();
    }
  });
});

describe("a kernel's failure", () => {
  /** An index that only the kernel sees. */
  const provoke = () => {
    const table = full([2, 1], 0);
    const index = Tensor.from(Int32Array.of(7), [1]);
    const rows = gatherRows(table, index);
    table.dispose();
    index.dispose();
    return rows;
  };

  it("surfaces where its result is read, with the op's name, and work goes on", async () => {
    const start = await liveBytes();
    const x = provoke();
    await expect(x.read()).rejects.toMatchObject({
      name: "LtxError",
      code: "native",
      message: expect.stringMatching(/^\[gather_rows\] index 7 /),
    });
    x.dispose();
    const z = scope(() => affine(full([1], 20), 2, 2));
    expect(await z.item()).toBe(42);
    z.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("surfaces at synchronize too, once", async () => {
    provoke().dispose();
    await expect(device().synchronize()).rejects.toMatchObject({
      code: "native",
      message: expect.stringMatching(/\[gather_rows\]/),
    });
    await expect(device().synchronize()).resolves.toBeUndefined();
  });

  it("of wrong operands is an error at the call", () => {
    expectError("native", /\[add_rows\] wrong number of operands/, () => launch("add_rows", [some([2])]));
    expectError("native", /\[add_rows\] operand row is missing/, () =>
      launch("add_rows", [some([2]), null, some([2])]),
    );
    expectError("native", /no op named nothing/, () => launch("nothing", []));
  });
});

describe("a process", () => {
  let library: Compiled;
  beforeAll(() => {
    library = compileLibrary();
  });
  afterAll(() => library.remove());

  it("ends by itself when its reads are done", async () => {
    const { code, stdout } = await library.run("ops.full([2], 3).read().then((v) => console.log([...v].join()))");
    expect({ code, stdout }).toEqual({ code: 0, stdout: "3,3\n" });
  });

  it("may exit with thousands of ops and reads pending", async () => {
    const { code, stderr } = await library.run(`
      const x = ops.full([300000], 1);
      for (let i = 0; i < 5000; i++) tensor.launch("unary", [x, x], [10, 0, 0]);
      for (let i = 0; i < 100; i++) x.read();
      process.exit(0);`);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  });

  it("ends with an error that nobody caught", async () => {
    const { code, stderr } = await library.run("ops.add(ops.full([2], 3), ops.full([3], 3))");
    expect(code).toBe(1);
    expect(stderr).toMatch(/LtxError: \[add\] operands differ in shape: \[2\] and \[3\]/);
  });

  it("computes the same in four worker threads at once", async () => {
    const body = `
      const { parentPort, workerData } = require("node:worker_threads");
      const tensor = require(workerData.tensor), ops = require(workerData.ops);
      (async () => {
        const key = { seed: 1, step: 2, purpose: 3 };
        const w = ops.affine(ops.normal([64, 64], key), 0.125);
        w.requiresGrad = true;
        let last;
        for (let i = 0; i < 10; i++) {
          const y = tensor.scope(() => {
            const x = ops.normal([50, 64], { ...key, step: 4 });
            const h = ops.linear(ops.normAct(ops.linear(x, w, null, "silu"), { kind: "rms_norm" }), w);
            tensor.backward(ops.mean(ops.square(h)));
            return h;
          });
          last = [...await y.read()].concat([...await w.grad.read()]);
          y.dispose();
          w.grad.dispose();
          w.grad = null;
        }
        parentPort.postMessage(last);
      })();`;
    const { stdout, stderr, code } = await library.run(`
      const { Worker } = require("node:worker_threads");
      const workerData = { tensor: ${JSON.stringify(library.path("tensor/index.js"))}, ops: ${JSON.stringify(library.path("ops/index.js"))} };
      const all = Array.from({ length: 4 }, () => new Promise((resolve, reject) => {
        const worker = new Worker(${JSON.stringify(body)}, { eval: true, workerData });
        let result;
        worker.on("message", (message) => { result = message; });
        worker.on("error", reject);
        worker.on("exit", (exit) => exit ? reject(new Error("exit " + exit)) : resolve(result));
      }));
      Promise.all(all).then(async (results) => {
        const equal = results.every((r) => r.length === results[0].length && r.every((v, i) => v === results[0][i]));
        const finite = results[0].every(Number.isFinite) && results[0].some((v) => Math.abs(v) > 0.1);
        console.log(JSON.stringify({ equal, finite, count: results[0].length, live: tensor.device().memory().live }));
      });`);
    expect(stderr).toBe("");
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toEqual({ equal: true, finite: true, count: 50 * 64 + 64 * 64, live: 0 });
  });

  it("outlives a worker that is terminated in the middle of its work", async () => {
    const body = `
      const { workerData, parentPort } = require("node:worker_threads");
      const tensor = require(workerData.tensor), ops = require(workerData.ops);
      const x = ops.full([300000], 1);
      parentPort.postMessage("started");
      for (;;) tensor.launch("unary", [x, x], [10, 0, 0]);`;
    const { stdout, stderr, code } = await library.run(`
      const { Worker } = require("node:worker_threads");
      const workerData = { tensor: ${JSON.stringify(library.path("tensor/index.js"))}, ops: ${JSON.stringify(library.path("ops/index.js"))} };
      const x = ops.full([4], 2), before = tensor.device().memory().live;
      const worker = new Worker(${JSON.stringify(body)}, { eval: true, workerData });
      worker.on("message", async () => {
        await worker.terminate();
        const values = await ops.affine(x, 3).read();
        console.log([...values].join(), tensor.device().memory().live / before);
      });`);
    expect({ code, stderr, stdout }).toEqual({ code: 0, stderr: "", stdout: "6,6,6,6 2\n" });
  });
});

describe("reads", () => {
  let library: Compiled;
  beforeAll(() => {
    library = compileLibrary();
  });
  afterAll(() => library.remove());

  it("copy where the runtime takes no memory from outside, as Electron does not", async () => {
    const { code, stdout, stderr } = await library.run(`
      process.env.LTX_EXTERNAL_BUFFERS = "0";
      const values = [ops.full([300000], 3), ops.full([0], 1), tensor.Tensor.from(Uint8Array.of(7), [1])];
      Promise.all(values.map((x) => x.read())).then((all) => {
        console.log(all.map((v) => [v.constructor.name, v.length, v.at(-1)].join()).join(" "));
      });`);
    expect({ code, stdout, stderr }).toEqual({
      code: 0,
      stdout: "Float32Array,300000,3 Float32Array,0, Uint8Array,1,7\n",
      stderr: "",
    });
  });

  it.each(["0", "1"])("of more than the host has are out_of_memory (external buffers: %s)", async (external) => {
    // As much again as the process has is more than its address space may grow by.
    const { code, stdout, stderr } = await library.run(`
      process.env.LTX_EXTERNAL_BUFFERS = "${external}";
      const x = ops.full([64 * 2 ** 20], 3), y = ops.full([2], 4);
      (async () => {
        await y.read();
        const pages = Number(require("node:fs").readFileSync("/proc/self/statm", "utf8").split(" ")[0]);
        const limit = "--as=" + (pages * 4096 + 100 * 2 ** 20);
        require("node:child_process").execFileSync("prlimit", ["--pid", String(process.pid), limit]);
        console.log(await x.read().then(() => "read", ({ code, message }) => code + " " + message));
        console.log([...await y.read()].join());
      })();`);
    expect({ code, stdout, stderr }).toEqual({
      code: 0,
      stdout: "out_of_memory [read] out of memory: 268435456 bytes on the host\n4,4\n",
      stderr: "",
    });
  });
});
