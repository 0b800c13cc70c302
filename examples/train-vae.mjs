// Trains the quickstart's VAE for a few steps inside a program, stops it by a signal, and looks at a held-out score.
import { fileURLToPath } from "node:url";
import { loadConfig, MovingMnist, VaeTrainer } from "ltx-native";

const { vae: config } = await loadConfig(fileURLToPath(new URL("../configs/quickstart.yaml", import.meta.url)));
const { frames, height, width } = config.data;
const data = new MovingMnist({ seed: 7, frames, height, width, digits: 1, digitSize: 20 });
const trainer = await VaeTrainer.create({ config, data });
const stop = new AbortController();
process.once("SIGINT", () => stop.abort());

for await (const event of trainer.run({ steps: 100, signal: stop.signal })) {
  if (event.type === "step" && event.step % 10 === 0) console.log(event.step, event.loss.toFixed(1));
  if (event.type === "validate") console.log(`PSNR ${event.metrics.psnr.toFixed(2)} dB`);
}
trainer.dispose();
