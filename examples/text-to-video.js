// Draws a video from a prompt with an official release: node examples/text-to-video.js CHECKPOINT TEXT_ENCODER PROMPT
const { LtxVideoPipeline } = require("ltx-native");

async function main([checkpoint, textEncoder, prompt]) {
  const pipeline = await LtxVideoPipeline.load({ checkpoint, textEncoder, offload: true });
  try {
    // An undistilled 2B model: guidance by the negative prompt (CFG) and by a network with a hole in it (STG).
    const video = await pipeline.generate({
      prompt,
      negativePrompt: "worst quality, inconsistent motion, blurry, jittery, distorted",
      height: 480,
      width: 704,
      numFrames: 97,
      frameRate: 25,
      numInferenceSteps: 40,
      guidanceScale: 3,
      stgScale: 1,
      rescalingScale: 0.7,
      skipBlockList: [19],
      decodeTimestep: 0.05,
      decodeNoiseScale: 0.025,
      seed: 1,
      onStep: ({ step, steps }) => process.stderr.write(`\rstep ${step}/${steps}`),
    });
    await video.save("text-to-video.mp4");
    console.log("\ntext-to-video.mp4");
  } finally {
    pipeline.dispose();
  }
}

main(process.argv.slice(2));
