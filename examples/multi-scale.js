// Draws small, then again at the full size: node examples/multi-scale.js CHECKPOINT UPSCALER TEXT_ENCODER PROMPT
const { LtxMultiScalePipeline } = require("ltx-native");

async function main([checkpoint, spatialUpscaler, textEncoder, prompt]) {
  const pipeline = await LtxMultiScalePipeline.load({ checkpoint, spatialUpscaler, textEncoder, offload: true });
  try {
    // The times of the distilled 0.9.8 models.
    const video = await pipeline.generate({
      prompt,
      height: 704,
      width: 1216,
      numFrames: 121,
      frameRate: 30,
      guidanceScale: 1,
      downscaleFactor: 2 / 3,
      firstPass: { timesteps: [1, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725] },
      secondPass: { timesteps: [0.9094, 0.725, 0.4219] },
      decodeTimestep: 0.05,
      decodeNoiseScale: 0.025,
      seed: 1,
      onStep: ({ pass, step, steps }) => process.stderr.write(`\rpass ${pass}, step ${step}/${steps} `),
    });
    await video.save("multi-scale.mp4");
    console.log("\nmulti-scale.mp4");
  } finally {
    pipeline.dispose();
  }
}

main(process.argv.slice(2));
