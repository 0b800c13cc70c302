// Brings an image to life: node examples/image-to-video.js CHECKPOINT TEXT_ENCODER IMAGE PROMPT
const { LtxVideoPipeline, prepareMedia, readMedia } = require("ltx-native");

async function main([checkpoint, textEncoder, image, prompt]) {
  const size = { height: 480, width: 704 };
  const mediaItem = await prepareMedia(await readMedia(image), size, "conditioning");
  const pipeline = await LtxVideoPipeline.load({ checkpoint, textEncoder, offload: true });
  try {
    const video = await pipeline.generate({
      prompt,
      ...size,
      numFrames: 97,
      frameRate: 25,
      numInferenceSteps: 8,
      guidanceScale: 1,
      stochasticSampling: true,
      conditioningItems: [{ mediaItem, mediaFrameNumber: 0, conditioningStrength: 1 }],
      decodeTimestep: 0.05,
      decodeNoiseScale: 0.025,
      seed: 1,
      onStep: ({ step, steps }) => process.stderr.write(`\rstep ${step}/${steps}`),
    });
    await video.save("image-to-video.mp4");
    console.log("\nimage-to-video.mp4");
  } finally {
    pipeline.dispose();
  }
}

main(process.argv.slice(2));
