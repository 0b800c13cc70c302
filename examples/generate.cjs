// Draws a video from prompts with the quickstart's model: node examples/generate.cjs [RUN] [PROMPT...]
const { TextToVideo } = require("ltx-native");

async function main([run = "runs/quickstart", ...prompts]) {
  const pipeline = await TextToVideo.load(run);
  try {
    const video = await pipeline.generate({
      prompts: prompts.length > 0 ? prompts : ["seven", "3"],
      seed: 1,
      onStep: (done, total) => process.stderr.write(`\rstep ${done}/${total}`),
    });
    await video.save("generated.gif", { scale: 4 });
    console.log("\ngenerated.gif");
  } finally {
    pipeline.dispose();
  }
}

main(process.argv.slice(2));
