// Continues a video: node examples/extend.js CHECKPOINT TEXT_ENCODER VIDEO PROMPT
const { firstFrames, LtxVideoPipeline, prepareMedia, readMedia } = require("ltx-native");

async function main([checkpoint, textEncoder, source, prompt]) {
  const size = { height: 480, width: 704 };
  // The first 33 frames: a video that conditions has 8k + 1 of them.
  const clip = firstFrames(await readMedia(source, { maxFrames: 33 }), 33);
  const mediaItem = await prepareMedia(clip, size, "conditioning");
  const pipeline = await LtxVideoPipeline.load({ checkpoint, textEncoder, offload: true });
  try {
    const video = await pipeline.generate({
      prompt,
      ...size,
      numFrames: 97,
      frameRate: 25,
      numInferenceSteps: 40,
      guidanceScale: 3,
      stgScale: 1,
      rescalingScale: 0.7,
      skipBlockList: [19],
      // At 64 instead of 0 the clip ends the video, which leads up to it. Images may stand at any frame.
      conditioningItems: [{ mediaItem, mediaFrameNumber: 0, conditioningStrength: 1 }],
      decodeTimestep: 0.05,
      decodeNoiseScale: 0.025,
      seed: 1,
    });
    await video.save("extended.mp4");
    console.log("extended.mp4");
  } finally {
    pipeline.dispose();
  }
}

main(process.argv.slice(2));
