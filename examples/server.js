// A server that draws videos: node examples/server.js CHECKPOINT TEXT_ENCODER [PORT]
//
//   curl -N 'localhost:8080/?prompt=a+boat+at+sea&height=256&width=384&num_frames=25' -o boat.webp
//
// One pipeline serves all requests; who goes away before the video is done stops the work on it, and its memory is free
// again. GET /memory tells how many bytes tensors hold.
const { createServer } = require("node:http");
const { mkdtemp, readFile, rm } = require("node:fs/promises");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { LtxError, LtxVideoPipeline } = require("ltx-native");

/** Arguments of `generate` from a query string; the pipeline itself checks them. */
function optionsFrom(query) {
  const number = (name, otherwise) => (query.has(name) ? Number(query.get(name)) : otherwise);
  return {
    prompt: query.get("prompt") ?? "",
    negativePrompt: query.get("negative_prompt") ?? "worst quality, inconsistent motion, blurry, jittery, distorted",
    height: number("height", 256),
    width: number("width", 384),
    numFrames: number("num_frames", 25),
    frameRate: number("frame_rate", 25),
    numInferenceSteps: number("num_inference_steps", 8),
    timesteps: query.has("timesteps") ? query.get("timesteps").split(",").map(Number) : null, // those of a distilled model
    guidanceScale: number("guidance_scale", 1),
    seed: number("seed", 0),
  };
}

async function answer(pipeline, request, response) {
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  if (pathname === "/memory") return response.end(JSON.stringify(pipeline.device.memory()));
  const gone = new AbortController();
  response.on("close", () => gone.abort());
  const folder = await mkdtemp(join(tmpdir(), "ltx-server-"));
  try {
    const video = await pipeline.generate({ ...optionsFrom(searchParams), signal: gone.signal });
    const path = join(folder, "video.webp");
    await video.save(path, { labels: false });
    response.setHeader("content-type", "image/webp").end(await readFile(path));
  } finally {
    await rm(folder, { recursive: true });
  }
}

async function main([checkpoint, textEncoder, port = "8080"]) {
  const pipeline = await LtxVideoPipeline.load({ checkpoint, textEncoder });
  const server = createServer((request, response) => {
    answer(pipeline, request, response).catch((error) => {
      if (!(error instanceof LtxError)) console.error(error);
      const wrong = ["invalid_argument", "shape_mismatch"].includes(error.code);
      if (!response.headersSent) response.writeHead(wrong ? 400 : 500);
      response.end(`${error.message}\n`);
    });
  });
  server.listen(Number(port), () => console.log(`http://localhost:${server.address().port}`));
  for (const signal of ["SIGINT", "SIGTERM"]) {
    process.once(signal, () => {
      server.close(() => pipeline.dispose());
      server.closeAllConnections();
    });
  }
}

main(process.argv.slice(2));
