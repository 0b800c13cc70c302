import { expect, it } from "vitest";
import { LtxError } from "../../../lib/errors.js";
import { Residency } from "../../../lib/pipelines/official/residency.js";

/** Parts that write down what becomes of them. */
function parts(offload: boolean) {
  const log: string[] = [];
  const loader = (name: string) => async () => {
    log.push(`load ${name}`);
    return { name, dispose: () => log.push(`free ${name}`) };
  };
  const models = new Residency({ a: loader("a"), b: loader("b") }, offload, async () => void log.push("close"));
  return { log, models };
}

const settled = () => new Promise((resolve) => setTimeout(resolve, 5));

it("keeps all models unless they take turns", async () => {
  const { log, models } = parts(false);
  await models.use("a", async () => models.use("b", async () => {}));
  await models.use("a", async () => {});
  expect(log).toEqual(["load a", "load b"]);
  models.dispose();
  await settled();
  expect(log.sort()).toEqual(["close", "free a", "free b", "load a", "load b"]);
});

it("has one model at a time where they take turns, and waits for who uses it", async () => {
  const { log, models } = parts(true);
  const user = (name: "a" | "b") =>
    models.use(name, async () => {
      log.push(`begin ${name}`);
      await settled();
      log.push(`end ${name}`);
    });
  await Promise.all([user("a"), user("b"), user("b"), user("a")]);
  const turns = (name: string) => [`begin ${name}`, `end ${name}`];
  expect(log).toEqual([
    ...["load a", ...turns("a"), "free a"],
    ...["load b", ...turns("b"), ...turns("b"), "free b"],
    ...["load a", ...turns("a")],
  ]);
});

it("lets those go at once who are stopped while they wait", async () => {
  const { log, models } = parts(true);
  let release = () => {};
  const first = models.use("a", () => new Promise<void>((resolve) => (release = resolve)));
  const stop = new AbortController();
  const second = models.use("b", async () => {}, stop.signal);
  const third = models.use("b", async () => log.push("third"));
  await settled();
  stop.abort("gone");
  // The first one holds its model still, and would for ever.
  await expect(second).rejects.toMatchObject({ code: "aborted", cause: "gone" });
  expect(log).toEqual(["load a"]);
  release();
  await Promise.all([first, third]);
  expect(log).toEqual(["load a", "free a", "load b", "third"]);
});

/** A model whose load ends when it is told to, or with the signal that it is given. */
function slowly(offload: boolean) {
  const log: string[] = [];
  const loads: (() => void)[] = [];
  const models = new Residency(
    {
      a: (signal) =>
        new Promise<{ dispose(): void }>((resolve, reject) => {
          log.push("load");
          signal.addEventListener("abort", () => {
            log.push("stop");
            reject(new LtxError("aborted", "[load] stopped"));
          });
          loads.push(() => resolve({ dispose: () => log.push("free") }));
        }),
    },
    offload,
  );
  return { log, loads, models };
}

it("stops loading when nobody waits for the model any more, and loads it again for the next", async () => {
  const { log, loads, models } = slowly(false);
  const [one, two] = [new AbortController(), new AbortController()];
  const uses = [one, two].map(({ signal }) => models.use("a", async () => 1, signal));
  const ends = Promise.allSettled(uses);
  await settled();
  one.abort();
  await expect(uses[0]).rejects.toMatchObject({ code: "aborted" });
  expect(log).toEqual(["load"]);
  two.abort();
  expect((await ends).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  const third = models.use("a", async () => 3);
  await settled();
  expect(log).toEqual(["load", "stop", "load"]);
  loads[1]();
  expect(await third).toBe(3);
});

it.each([[false], [true]])("leaves a load at once, also where models take turns (%s)", async (offload) => {
  const { log, models } = slowly(offload);
  const stop = new AbortController();
  const use = models.use("a", async () => {}, stop.signal);
  await settled();
  stop.abort();
  await expect(use).rejects.toMatchObject({ code: "aborted" });
  expect(log).toEqual(["load", "stop"]);
});

it("changes models between videos: refused in one, and the next waits for all changes", async () => {
  const { models } = parts(false);
  const log: string[] = [];
  const video = models.video(async () => {
    await settled();
    log.push("video");
  });
  await expect(models.change(async () => {})).rejects.toMatchObject({ code: "invalid_argument" });
  await video;
  const change = (name: string) =>
    models.change(async () => {
      await settled();
      log.push(name);
    });
  const first = change("first");
  const next = models.video(async () => log.push("next"));
  const failing = models.change(() => Promise.reject(new Error("no")));
  const second = change("second");
  const stop = new AbortController();
  const impatient = models.video(async () => log.push("never"), stop.signal);
  stop.abort();
  await expect(impatient).rejects.toMatchObject({ code: "aborted" });
  await expect(failing).rejects.toThrow("no");
  await Promise.all([first, second, next]);
  expect(log).toEqual(["video", "first", "second", "next"]);
});

it("goes on after a failure, of a model or of its user", async () => {
  let fail = true;
  const models = new Residency(
    {
      a: async () => {
        if (fail) throw new Error("no such file");
        return { dispose() {} };
      },
    },
    true,
  );
  await expect(models.use("a", async () => {})).rejects.toThrow("no such file");
  fail = false;
  await expect(models.use("a", () => Promise.reject(new Error("own")))).rejects.toThrow("own");
  expect(await models.use("a", async () => 7)).toBe(7);
});

it.each([[false], [true]])(
  "frees models when their last user ends, and gives no more (offload %s)",
  async (offload) => {
    const { log, models } = parts(offload);
    const use = models.use("a", async () => {
      await settled();
      await settled();
      log.push("end");
    });
    await settled();
    models.dispose();
    await use;
    await settled();
    expect(log.slice(0, 2)).toEqual(["load a", "end"]);
    expect(log.slice(2).sort()).toEqual(["close", "free a"]);
    await expect(models.use("a", async () => {})).rejects.toMatchObject({ code: "disposed" });
  },
);
