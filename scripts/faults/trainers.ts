/**
 * Failures inside of trainers: no memory for a tensor, a kernel that can't be queued, values that can't be read, a clip
 * that can't be loaded, at any point of making one and of its steps, validations, pictures and checkpoints. After each:
 * no byte and no gradient more than before, an error that says what happened, and, where the training goes on, the same
 * numbers as without the failure.
 */
import { join } from "node:path";
import { MovingMnist } from "../../lib/data/index.js";
import { FlowTrainer, VaeTrainer } from "../../lib/training/index.js";
import { allocation, armed, launch, type Point, readBack } from "./inject.js";
import { type Context, type FaultKind, isTold, liveBytes, picks, shown } from "./runner.js";
import { collect, gradientsOf, stateOf, tinyFlow, tinyVae } from "./tiny.js";

type AnyTrainer = VaeTrainer | FlowTrainer;

interface Subject {
  name: string;
  create(): Promise<AnyTrainer>;
  preview(trainer: AnyTrainer): Promise<unknown>;
}

async function subjects(folder: string): Promise<Subject[]> {
  const first = await VaeTrainer.create({ config: { ...tinyVae() } });
  const path = await first.save(join(folder, "vae"));
  first.dispose();
  const vae = join(path, "model.safetensors");
  return [
    {
      name: "VaeTrainer",
      create: () => VaeTrainer.create({ config: tinyVae() }),
      preview: (trainer) => (trainer as VaeTrainer).reconstruct(),
    },
    {
      name: "FlowTrainer",
      create: () => FlowTrainer.create({ config: tinyFlow(), vae }),
      preview: (trainer) => (trainer as FlowTrainer).sample(["zero", "1"]),
    },
  ];
}

/** Making a trainer fails at any point. */
async function making(
  context: Context,
  { name, create }: Subject,
  points: readonly Point[],
  told: typeof isTold,
): Promise<void> {
  const count = async () => (await create()).dispose();
  await count();
  const { calls } = await armed(points, 0, count);
  for (const at of picks(calls, context.count, context.random)) {
    const before = await liveBytes();
    const { error, fired } = await armed(points, at, count);
    if (!fired) continue;
    context.injected();
    const where = `${name}.create, call ${at} of ${calls}`;
    if (!told(error)) context.wrong(`${where}: ${shown(error)}`);
    const left = (await liveBytes()) - before;
    if (left !== 0) context.wrong(`${where}: ${left} bytes left`);
  }
}

/** A run, a picture or a checkpoint fails at any point; then the training goes on to its end. */
async function going(
  context: Context,
  { name, create, preview }: Subject,
  points: readonly Point[],
  told: typeof isTold,
): Promise<void> {
  const checkpoints = join(context.folder, `${name}-checkpoints`);
  const parts: Record<string, (trainer: AnyTrainer) => Promise<unknown>> = {
    run: (trainer) => collect(trainer.run({ steps: 3 })),
    preview: (trainer) => preview(trainer),
    save: (trainer) => trainer.save(checkpoints),
  };
  const whole = await create();
  await collect(whole.run());
  const expected = await stateOf(whole);
  whole.dispose();
  for (const [part, body] of Object.entries(parts)) {
    const begin = async () => {
      const trainer = await create();
      if (part !== "run") await collect(trainer.run({ steps: 1 }));
      return trainer;
    };
    const counted = await begin();
    const { calls } = await armed(points, 0, () => body(counted));
    counted.dispose();
    for (const at of picks(calls, Math.ceil(context.count / 2), context.random)) {
      const where = `${name} ${part}, call ${at} of ${calls}`;
      const before = await liveBytes();
      const trainer = await begin();
      const { error, fired } = await armed(points, at, () => body(trainer));
      if (fired) {
        context.injected();
        if (error !== undefined && !told(error)) context.wrong(`${where}: ${shown(error)}`);
        if (gradientsOf(trainer) > 0) context.wrong(`${where}: ${gradientsOf(trainer)} gradients left`);
        await collect(trainer.run()).catch((later) => context.wrong(`${where}: then ${shown(later)}`));
        if ((await stateOf(trainer)) !== expected) context.wrong(`${where}: the training went on to other values`);
      }
      trainer.dispose();
      const left = (await liveBytes()) - before;
      if (left !== 0) context.wrong(`${where}: ${left} bytes left`);
    }
  }
}

/** @param told whether an error is what a caller may expect */
const kind = (
  name: string,
  what: string,
  points: readonly Point[],
  { withMaking = true, told = isTold } = {},
): FaultKind => ({
  name,
  what,
  async run(context) {
    for (const subject of await subjects(context.folder)) {
      if (withMaking) await making(context, subject, points, told);
      await going(context, subject, points, told);
      context.say(subject.name);
    }
  },
});

export const trainerKinds: readonly FaultKind[] = [
  kind("trainer-memory", "no memory for a tensor", [allocation]),
  kind("trainer-launch", "a kernel that can't be queued", [launch]),
  kind("trainer-read", "values that can't be read, a device that can't be waited for", readBack),
  kind(
    "trainer-clip",
    "a clip that can't be loaded",
    [
      {
        target: MovingMnist.prototype,
        property: "clip",
        fail: () => {
          throw Object.assign(new Error("EIO: injected, read"), { code: "EIO", syscall: "read" });
        },
      },
    ],
    // The data source may be the caller's own, and so is its error.
    { withMaking: false, told: (error) => isTold(error) || (error as Error).message.includes("injected") },
  ),
];
