/** Live bytes on the device do not grow over a thousand steps. */
import { expect, it } from "vitest";
import { device } from "../../lib/tensor/index.js";
import { FlowTrainer, VaeTrainer } from "../../lib/training/index.js";
import { collect, testFolder, tinyFlow, tinyVae } from "../support/tiny.js";
import { trainTinyVae } from "../support/tiny-models.js";

const folder = testFolder();
const thousand = (file: { vae: { training: object }; flow: { training: object } }) => {
  Object.assign(file.vae.training, { steps: 1000, validate_every: 250 });
  Object.assign(file.flow.training, { steps: 1000, validate_every: 250 });
};

const trainers = {
  vae: () => VaeTrainer.create({ config: tinyVae(thousand) }),
  flow: async () => FlowTrainer.create({ config: tinyFlow(thousand), vae: await trainTinyVae(folder) }),
};

for (const [name, create] of Object.entries(trainers)) {
  it(`${name}: the same after step 10 and step 1,000`, async () => {
    const trainer = await create();
    const live: Record<number, object> = {};
    for (const steps of [10, 1000]) {
      await collect(trainer.run({ steps }));
      await device().synchronize();
      const { live: bytes, groups } = device().memory();
      live[steps] = { bytes, groups };
    }
    console.log(`${name}: ${JSON.stringify(live[1000])}`);
    expect(live[1000]).toEqual(live[10]);
    trainer.dispose();
  });
}
