import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readSafetensors, writeSafetensors } from "../../lib/formats/safetensors.js";
import { device } from "../../lib/tensor/index.js";
import { differenceOf, environmentOf, parseEnvironment } from "../../lib/training/environment.js";
import { VaeTrainer } from "../../lib/training/index.js";
import { version } from "../../lib/version.js";
import { collect, testFolder, tinyVae } from "../support/tiny.js";

const folder = testFolder();

describe("what exact resumption depends on", () => {
  it("is the package, the backend, its instruction set and its libraries, but not the threads", () => {
    const { isa, onednn } = device("cpu").describe();
    const found = environmentOf(device("cpu"));
    expect(found).toMatchObject({ version, backend: "cpu", isa, onednn });
    expect(Object.keys(found)).not.toContain("threads");
  });

  it("differs in one line that names all that is another", () => {
    const now = { version: "2", backend: "cpu", isa: "avx2", name: "x" };
    expect(differenceOf(now, { ...now })).toBeNull();
    expect(differenceOf({ version: "1", backend: "cpu", isa: "avx512", driver: "5" }, now)).toBe(
      "resumed with version 2 instead of 1, isa avx2 instead of avx512, driver unknown instead of 5, name x instead of unknown: " +
        "results will not be the same to the bit as without the interruption",
    );
  });

  it("is read from metadata that may hold anything", () => {
    expect(parseEnvironment('{"isa":"avx2","threads":3}')).toEqual({ isa: "avx2" });
    for (const text of [undefined, "", "{", "null", "[1]", "3", '"avx2"']) expect(parseEnvironment(text)).toBeNull();
  });

  it("is told when a run is resumed elsewhere, and only then", async () => {
    const trainer = await VaeTrainer.create({ config: tinyVae() });
    await collect(trainer.run({ steps: 2 }));
    const path = await trainer.save(join(folder, "checkpoints"));
    const notices = async () => {
      await trainer.resume(path, 2);
      const events = await collect(trainer.run({ steps: 3 }));
      return events.flatMap((event) => (event.type === "notice" ? [event.message] : []));
    };
    expect(await notices()).toEqual([]);

    const file = join(path, "training.safetensors");
    const { tensors, metadata, read, close } = await readSafetensors(file);
    const parts = await Promise.all(
      [...tensors].map(async ([name, { dtype, shape }]) => ({ name, dtype, shape, data: await read(name) })),
    );
    await close();
    const environment = JSON.stringify({ ...JSON.parse(metadata.environment), isa: "sse" });
    await writeSafetensors(file, parts, { ...metadata, environment });
    const { isa } = device().describe();
    expect(await notices()).toEqual([
      `resumed with isa ${isa} instead of sse: results will not be the same to the bit as without the interruption`,
    ]);
    trainer.dispose();
  });
});
