import { expect, it } from "vitest";
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

it("lets those go who are stopped while they wait", async () => {
  const { log, models } = parts(true);
  const stop = new AbortController();
  const first = models.use("a", settled);
  const second = models.use("b", async () => {}, stop.signal);
  stop.abort();
  await expect(second).rejects.toMatchObject({ code: "aborted" });
  await first;
  expect(log).toEqual(["load a"]);
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
