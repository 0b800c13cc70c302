/** A kernel that fails is the failure of those who depend on it, and of nobody else. */
import { Worker } from "node:worker_threads";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import {
  adamUpdate,
  add,
  affine,
  batchNorm,
  emaUpdate,
  full,
  gatherRows,
  linear,
  mean,
  square,
} from "../../lib/ops/index.js";
import { alias, backward, device, launch, noGrad, scope, Tensor } from "../../lib/tensor/index.js";
import { type Compiled, compileLibrary } from "../support/compiled.js";
import { liveBytes } from "../support/gradcheck.js";

const from = (...values: number[]) => Tensor.from(values, [values.length]);
const read = async (x: Tensor) => [...(await x.read())];

/** Rows that are not there: (2, 2), whose making fails. `wrong` is the index that the message names. */
function broken(wrong = 99): Tensor {
  return scope(() => gatherRows(full([3, 2], 1), Tensor.from(Int32Array.of(0, wrong), [2])));
}

const failure = (wrong = 99) => ({
  name: "LtxError",
  code: "native",
  message: `[gather_rows] index ${wrong} at position 1 is outside the table's 3 rows`,
});

let start = 0;
const made: Tensor[] = [];
const own = <T extends Tensor>(tensor: T): T => {
  made.push(tensor);
  return tensor;
};
beforeAll(async () => {
  start = await liveBytes();
});
afterEach(async () => {
  for (const tensor of made.splice(0)) tensor.dispose();
  await device()
    .synchronize()
    .catch(() => {});
  expect(await liveBytes()).toBe(start);
});

describe("two users of a device", () => {
  it.each(["first", "last"])("hear of their own failures only, the one who failed awaiting %s", async (order) => {
    const bad = own(broken());
    const good = own(scope(() => affine(full([4], 3), 2, 1)));
    const awaits = [
      () => expect(bad.read()).rejects.toMatchObject(failure()),
      () => expect(read(good)).resolves.toEqual([7, 7, 7, 7]),
    ];
    if (order === "last") awaits.reverse();
    for (const wait of awaits) await wait();
  });

  it("hear of them at once, and of each its own", async () => {
    const results = await Promise.allSettled(
      [own(broken(5)), own(full([2], 1)), own(broken(-7)), own(full([1], 2))].map(read),
    );
    expect(results).toEqual([
      { status: "rejected", reason: expect.objectContaining(failure(5)) },
      { status: "fulfilled", value: [1, 1] },
      { status: "rejected", reason: expect.objectContaining(failure(-7)) },
      { status: "fulfilled", value: [2] },
    ]);
  });

  it("train beside each other: one step fails, the other's is right", async () => {
    const update = (input: Tensor) => {
      const w = own(full([2, 2], 0.5));
      w.requiresGrad = true;
      const loss = scope(() => {
        const result = mean(square(linear(input, w)));
        backward(result);
        return result;
      });
      return { w, loss: own(loss), grad: w.grad as Tensor };
    };
    const bad = update(own(broken()));
    const good = update(own(full([2, 2], 1)));
    expect(await read(good.loss)).toEqual([1]);
    expect(await read(good.grad)).toEqual([1, 1, 1, 1]);
    await expect(bad.loss.read()).rejects.toMatchObject(failure());
    await expect(bad.grad.read()).rejects.toMatchObject(failure());
    expect(await read(bad.w)).toEqual([0.5, 0.5, 0.5, 0.5]);
  });
});

describe("what depends on a failure", () => {
  it("rejects with it whoever reads, as often as they do, however far behind", async () => {
    const bad = own(broken());
    let x = bad;
    for (let i = 0; i < 20; i++) x = own(affine(x, 2, i));
    for (let i = 0; i < 3; i++) {
      await expect(x.read()).rejects.toMatchObject(failure());
      await expect(bad.readBytes()).rejects.toMatchObject(failure());
      await expect(x.ready()).rejects.toMatchObject(failure());
    }
    await expect(own(full([1], 1)).ready()).resolves.toBeUndefined();
  });

  it("names the failure that came first where it depends on two", async () => {
    const sum = own(add(own(broken(4)), own(broken(5))));
    await expect(sum.read()).rejects.toMatchObject(failure(4));
  });

  it("is well again once it is written as a whole", async () => {
    const bad = own(broken());
    await expect(bad.read()).rejects.toMatchObject(failure());
    bad.write([1, 2, 3, 4]);
    expect(await read(bad)).toEqual([1, 2, 3, 4]);
    const again = own(broken());
    launch("fill", [again], [6]);
    expect(await read(again)).toEqual([6, 6, 6, 6]);
  });

  it("is what was to be written, not the rest of the memory", async () => {
    const rows = own(full([4, 2], 1));
    const [middle, last] = [own(alias(rows, [2, 2], 2)), own(alias(rows, [1, 2], 6))];
    launch("cast", [own(broken()), middle], [1, 0]);
    await expect(rows.read()).rejects.toMatchObject(failure());
    await expect(own(alias(rows, [2], 4)).read()).rejects.toMatchObject(failure());
    expect(await read(last)).toEqual([1, 1]);
    expect(await read(own(alias(rows, [2], 0)))).toEqual([1, 1]);
    own(alias(rows, [2], 2)).write([5, 6]);
    await expect(rows.read()).rejects.toMatchObject(failure());
    own(alias(rows, [2], 4)).write([7, 8]);
    expect(await read(rows)).toEqual([1, 1, 5, 6, 7, 8, 1, 1]);
  });

  it("does not stay with the memory, which others get", async () => {
    for (let i = 0; i < 20; i++) {
      broken().dispose();
      const next = own(Tensor.from([1, 2, 3, 4], [2, 2]));
      expect(await read(next)).toEqual([1, 2, 3, 4]);
    }
  });

  it("is dropped while it is queued, if its tensor is disposed", async () => {
    const bad = broken();
    const next = own(noGrad(() => affine(bad, 2)));
    bad.dispose();
    await expect(next.read()).rejects.toMatchObject(failure());
  });
});

describe("what is changed in place", () => {
  const adam = { lr: 0.1, betas: [0.9, 0.99] as const, eps: 1e-8, weightDecay: 0, decoupled: false, step: 1 };
  const zeros = () => own(full([2, 2], 0));

  it("fails as a whole when the optimizer lacks one gradient", async () => {
    const params = [own(full([2, 2], 1)), own(full([2, 2], 2))];
    const state = {
      params,
      grads: [own(full([2, 2], 1)), own(broken())],
      m: [zeros(), zeros()],
      v: [zeros(), zeros()],
    };
    adamUpdate(state, adam);
    adamUpdate({ ...state, grads: [own(full([2, 2], 1)), own(full([2, 2], 1))] }, { ...adam, step: 2 });
    for (const tensor of [...params, ...state.m, ...state.v]) {
      await expect(tensor.read()).rejects.toMatchObject(failure());
    }
    for (const p of params) p.write([1, 1, 1, 1]);
    expect(await read(params[1])).toEqual([1, 1, 1, 1]);
  });

  it("fails when what it is added to is missing: averages, running statistics, gradients", async () => {
    const average = own(broken());
    emaUpdate([average], [own(full([2, 2], 1))], 0.5);
    await expect(average.read()).rejects.toMatchObject(failure());

    const runningMean = own(from(0, 0));
    const runningVar = own(from(1, 1));
    const y = own(noGrad(() => batchNorm(own(broken(7)), { runningMean, runningVar, training: true })));
    await expect(y.read()).rejects.toMatchObject(failure(7));
    await expect(runningMean.read()).rejects.toMatchObject(failure(7));
    const evaluated = () =>
      own(noGrad(() => batchNorm(own(full([2, 2], 1)), { runningMean, runningVar, training: false })));
    await expect(evaluated().read()).rejects.toMatchObject(failure(7));
    runningMean.write([0, 0]);
    runningVar.write([1, 1]);
    expect((await read(evaluated()))[0]).toBeCloseTo(1, 4);

    const sum = own(broken(8));
    launch("axpby", [sum, own(full([2, 2], 1)), sum], [1, 1]);
    await expect(sum.read()).rejects.toMatchObject(failure(8));
  });

  it("leaves the values that it reads as they are", async () => {
    const values = own(full([2, 2], 3));
    emaUpdate([own(broken())], [values], 0.5);
    expect(await read(values)).toEqual([3, 3, 3, 3]);
  });
});

describe("synchronize", () => {
  it("tells once of a failure that nobody has been told of", async () => {
    broken().dispose();
    await expect(device().synchronize()).rejects.toMatchObject(failure());
    await expect(device().synchronize()).resolves.toBeUndefined();
  });

  it("does not tell of what a read has told", async () => {
    const bad = own(broken());
    await expect(bad.read()).rejects.toMatchObject(failure());
    await expect(device().synchronize()).resolves.toBeUndefined();
  });

  it("tells of the first of several, and leaves reads their own", async () => {
    const [one, two] = [own(broken(6)), own(broken(7))];
    await expect(device().synchronize()).rejects.toMatchObject(failure(6));
    await expect(device().synchronize()).resolves.toBeUndefined();
    await expect(two.read()).rejects.toMatchObject(failure(7));
    await expect(one.read()).rejects.toMatchObject(failure(6));
  });
});

describe("threads", () => {
  let library: Compiled;
  beforeAll(() => {
    library = compileLibrary();
  });
  afterAll(() => library.remove());

  it("hear of their own failures only", async () => {
    const body = `
      const { parentPort, workerData } = require("node:worker_threads");
      const tensor = require(workerData.tensor), ops = require(workerData.ops);
      (async () => {
        const heard = [];
        for (let i = 0; i < 50; i++) {
          const wrong = (i + workerData.number) % 2 === 0;
          const index = tensor.Tensor.from(Int32Array.of(wrong ? 10 + workerData.number : 1), [1]);
          const y = ops.gatherRows(ops.full([3, 2], 4), index);
          heard.push(await y.read().then((v) => [...v].join(), (error) => error.message.match(/index (\\d+)/)[1]));
        }
        parentPort.postMessage(heard);
      })();`;
    const heard = await Promise.all(
      [0, 1, 2].map((number) => {
        const workerData = { tensor: library.path("tensor/index.js"), ops: library.path("ops/index.js"), number };
        const worker = new Worker(body, { eval: true, workerData });
        // What it has is freed at its end.
        return new Promise<string[]>((resolve, reject) => {
          let heard: string[] = [];
          worker.on("message", (message) => (heard = message)).on("error", reject);
          worker.on("exit", () => resolve(heard));
        });
      }),
    );
    for (const [number, each] of heard.entries()) {
      expect(each).toHaveLength(50);
      expect(each).toEqual(each.map((_, i) => ((i + number) % 2 === 0 ? String(10 + number) : "4,4")));
    }
    await expect(device().synchronize()).resolves.toBeUndefined();
  });
});
