// Draws a video anew: node examples/video-to-video.js CHECKPOINT TEXT_ENCODER VIDEO PROMPT
const { LtxVideoPipeline, prepareMedia, readMedia } = require("ltx-native");

async function main([checkpoint, textEncoder, source, prompt]) {
  const size = { height: 480, width: 704 };
  const numFrames = 49;
  const mediaItems = await prepareMedia(await readMedia(source, { maxFrames: numFrames }), size, "source");
  const pipeline = await LtxVideoPipeline.load({ checkpoint, textEncoder, offload: true });
  try {
    const video = await pipeline.generate({
      prompt,
      ...size,
      numFrames,
      frameRate: 25,
      mediaItems,
      numInferenceSteps: 40,
      // The video is noised to where drawing begins: the more steps are left out, the more of it stays.
      skipInitialInferenceSteps: 15,
      guidanceScale: 3,
      stgScale: 1,
      rescalingScale: 0.7,
      skipBlockList: [19],
      decodeTimestep: 0.05,
      decodeNoiseScale: 0.025,
      seed: 1,
    });
    await video.save("video-to-video.mp4");
    console.log("video-to-video.mp4");
  } finally {
    pipeline.dispose();
  }
}

main(process.argv.slice(2));
