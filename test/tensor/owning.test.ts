import { expect, it } from "vitest";
import { owning } from "../../lib/tensor/index.js";

const part = (name: string, gone: string[]) => ({ name, dispose: () => gone.push(name) });

it("disposes of the parts made so far when the next one fails, the last first", () => {
  const gone: string[] = [];
  const build = () =>
    owning((own) => {
      own(part("first", gone));
      own(part("second", gone));
      throw new Error("no third");
    });
  expect(build).toThrow("no third");
  expect(gone).toEqual(["second", "first"]);
});

it("does the same for what is built over time", async () => {
  const gone: string[] = [];
  const build = owning(async (own) => {
    own(part("first", gone));
    await null;
    own(part("second", gone));
    await Promise.reject(new Error("no third"));
  });
  await expect(build).rejects.toThrow("no third");
  expect(gone).toEqual(["second", "first"]);
});

it("leaves whole things alone", async () => {
  const gone: string[] = [];
  expect(owning((own) => own(part("one", gone))).name).toBe("one");
  expect(await owning(async (own) => own(part("two", gone)).name)).toBe("two");
  expect(gone).toEqual([]);
});
