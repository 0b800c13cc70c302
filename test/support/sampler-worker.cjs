// A worker thread that samples from a checkpoint with the seeds it is given, and posts a hash of each result.
const { createHash } = require("node:crypto");
const { parentPort, workerData } = require("node:worker_threads");
const { TextToVideo } = require(workerData.library);

async function main() {
  const { checkpoint, seeds, steps } = workerData;
  const pipeline = await TextToVideo.load(checkpoint);
  for (const seed of seeds) {
    const onStep = (done) => {
      if (done === 1) parentPort.postMessage({ started: seed });
    };
    const { clips } = await pipeline.generate({ prompts: ["three", "4"], seed, steps, onStep });
    const hash = createHash("sha256");
    for (const clip of clips) hash.update(clip);
    parentPort.postMessage({ seed, hash: hash.digest("hex") });
  }
  pipeline.dispose();
}

main();
