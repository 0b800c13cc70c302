/** Measures the lab's cases on command, in a process of its own: a kernel that crashes takes nothing else with it. */
import { createInterface } from "node:readline";
import { device as openDevice } from "../../lib/tensor/index.js";
import { Bench, type CaseSpec, type KernelCase } from "./case.js";
import { allCases } from "./cases.js";
import type { LabGreeting, LabReply, LabSetup } from "./protocol.js";
import { timeCalls } from "./timing.js";

const say = (value: LabGreeting | LabReply) => process.stdout.write(`${JSON.stringify(value)}\n`);

async function main(): Promise<void> {
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const setup: LabSetup = JSON.parse((await lines.next()).value);
  const device = openDevice(setup.device);
  say({ about: { device: device.name, ...device.describe() } });

  const measure = async ({ id, dtype, prepare }: KernelCase) => {
    const bench = new Bench(device, dtype);
    try {
      const { run, bytes } = prepare(bench);
      await device.synchronize();
      const { live } = device.memory();
      device.resetPeak();
      const seconds = await timeCalls(device, run, setup);
      say({ id, seconds, bytes, extra_bytes: device.memory().peak - live });
    } finally {
      bench.dispose();
    }
  };
  for await (const line of lines) {
    const { id }: CaseSpec = JSON.parse(line);
    const found = allCases.find((known) => known.id === id);
    if (!found) throw new Error(`no case named ${id}`);
    try {
      await measure(found);
    } catch (error) {
      say({ id, error: (error as Error).message });
    }
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
