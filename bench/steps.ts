/**
 * A step of ltx-native, timed on command, in a process of its own: memory of one measurement cannot disturb another. The
 * first line on standard input is the setup as JSON; each following line asks for that many steps, or is `profile` for
 * one step by kernel. Each is answered by one line of JSON. The end of the input ends the process.
 */
import { createInterface } from "node:readline";
import { device as openDevice } from "../lib/tensor/index.js";
import { leastBytes, TRAINING_PASSES } from "./floor.js";
import { countFlops, opFlops, totalFlops } from "./flops.js";
import type { Reply, Setup } from "./protocol.js";
import { createTask } from "./tasks.js";

async function main(): Promise<void> {
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const setup: Setup = JSON.parse((await lines.next()).value);
  const device = openDevice(setup.device);
  const task = createTask(setup, device);

  /** Steps are queued one behind the other; only the last one's result is looked at. */
  const timed = async (steps: number) => {
    const begun = performance.now();
    for (let i = 1; i < steps; i++) (await task.step()).dispose();
    const result = await task.step();
    await device.synchronize();
    const seconds = (performance.now() - begun) / 1000 / steps;
    const loss = task.trains ? await result.item() : undefined;
    result.dispose();
    return { seconds, loss };
  };
  const reply = (values: Omit<Reply, "peak_bytes" | "rss_bytes">) => {
    const rss_bytes = process.resourceUsage().maxRSS * 1024;
    process.stdout.write(`${JSON.stringify({ ...values, peak_bytes: device.memory().peak, rss_bytes })}\n`);
  };

  const counted = await countFlops(async () => (await task.forward()).dispose());
  const flops = (task.trains ? TRAINING_PASSES : 1) * totalFlops(counted);
  await timed(1);
  device.resetPeak();
  const parameters = task.parameters.reduce((n, p) => n + p.size, 0);
  const about = { device: device.name, ...device.describe() };
  const least_bytes = leastBytes(parameters, task.trains, setup.dtype);
  reply({ ...(await timed(1)), flops, least_bytes, parameters, about });
  for await (const line of lines) {
    if (line !== "profile") {
      reply(await timed(Number(line)));
      continue;
    }
    device.startProfile();
    const times = await timed(1);
    reply({ ...times, profile: device.stopProfile().map((op) => ({ ...op, flops: opFlops(op.op, counted) })) });
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
