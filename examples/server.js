// A server that draws videos: node examples/server.js CHECKPOINT TEXT_ENCODER [PORT]
//
//   curl -N 'localhost:8080/?prompt=a+boat+at+sea&height=256&width=384&num_frames=25' -o boat.webp
//
// One pipeline serves all requests, some at a time; the others wait, and when too many do, the next one is told to come
// back later. A client that disconnects cancels its request. What a request may ask for is limited, since a kernel that
// has begun can't be stopped. GET /memory tells how many bytes tensors hold.
const { createServer } = require("node:http");
const { mkdtemp, readFile, rm } = require("node:fs/promises");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { LtxError, LtxVideoPipeline } = require("ltx-native");

/** What a request may ask for at most: pixels of all frames together, steps, letters of a prompt. */
const LIMITS = { pixels: 704 * 1216 * 121, side: 1920, steps: 60, letters: 5000 };
/** Requests that are drawn at once, and that wait. Each that is drawn takes memory for its activations. */
const AT_ONCE = 2;
const WAITING = 16;
/** Milliseconds that a request has to end in when the server is stopped. */
const GRACE = 10_000;

/** An answer other than a video. */
class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Arguments of `generate` from a query string; the pipeline checks what is not limited here. */
function optionsFrom(query) {
  const number = (name, otherwise) => (query.has(name) ? Number(query.get(name)) : otherwise);
  const options = {
    prompt: query.get("prompt") ?? "",
    negativePrompt: query.get("negative_prompt") ?? "worst quality, inconsistent motion, blurry, jittery, distorted",
    height: number("height", 256),
    width: number("width", 384),
    numFrames: number("num_frames", 25),
    frameRate: number("frame_rate", 25),
    numInferenceSteps: number("num_inference_steps", 8),
    timesteps: query.has("timesteps") ? query.get("timesteps").split(",").map(Number) : null, // those of a distilled model
    guidanceScale: number("guidance_scale", 1),
    decodeTimestep: 0.05,
    decodeNoiseScale: 0.025,
    seed: number("seed", 0),
  };
  const { prompt, negativePrompt, height, width, numFrames, numInferenceSteps, timesteps } = options;
  const limit = (name, value, most) => {
    if (!(value <= most)) throw new Refusal(400, `${name} ${value}: at most ${most} here`);
  };
  limit("height", height, LIMITS.side);
  limit("width", width, LIMITS.side);
  limit("height x width x num_frames", height * width * numFrames, LIMITS.pixels);
  limit("steps", timesteps ? timesteps.length : numInferenceSteps, LIMITS.steps);
  limit("letters of the prompt", Math.max(prompt.length, negativePrompt.length), LIMITS.letters);
  return options;
}

/** Lets some in at once and others wait; those whose signal comes leave. */
class Queue {
  #drawing = 0;
  #waiting = [];

  async run(body, signal) {
    if (this.#drawing >= AT_ONCE) {
      if (this.#waiting.length >= WAITING) throw new Refusal(503, `${WAITING} requests wait already: come back later`);
      await new Promise((enter, leave) => {
        const turn = { enter };
        this.#waiting.push(turn);
        signal.addEventListener("abort", () => {
          this.#waiting = this.#waiting.filter((other) => other !== turn);
          leave(new Refusal(503, "stopped while it waited"));
        });
      });
    } else this.#drawing++;
    try {
      return await body();
    } finally {
      // The place goes to the next one, or becomes free.
      const next = this.#waiting.shift();
      if (next) next.enter();
      else this.#drawing--;
    }
  }
}

async function answer(pipeline, queue, request, response, stop) {
  if (!URL.canParse(request.url, "http://localhost")) throw new Refusal(400, `${request.url} is not an address`);
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  if (request.method !== "GET") throw new Refusal(405, "only GET is known");
  if (pathname === "/memory") return response.end(JSON.stringify(pipeline.device.memory()));
  if (pathname !== "/") throw new Refusal(404, `nothing is at ${pathname}: ask for / or /memory`);
  const options = optionsFrom(searchParams);
  const gone = new AbortController();
  response.on("close", () => gone.abort());
  const signal = AbortSignal.any([gone.signal, stop]);
  const draw = async () => {
    const folder = await mkdtemp(join(tmpdir(), "ltx-server-"));
    try {
      const video = await pipeline.generate({ ...options, signal });
      const path = join(folder, "video.webp");
      await video.save(path, { labels: false });
      return await readFile(path);
    } finally {
      await rm(folder, { recursive: true });
    }
  };
  response.setHeader("content-type", "image/webp").end(await queue.run(draw, signal));
}

function statusOf(error) {
  if (error instanceof Refusal) return error.status;
  if (error instanceof LtxError && ["invalid_argument", "shape_mismatch"].includes(error.code)) return 400;
  if (error instanceof LtxError && ["aborted", "out_of_memory"].includes(error.code)) return 503;
  return 500;
}

async function main([checkpoint, textEncoder, port = "8080"]) {
  const pipeline = await LtxVideoPipeline.load({ checkpoint, textEncoder });
  const queue = new Queue();
  const stop = new AbortController();
  const server = createServer((request, response) => {
    answer(pipeline, queue, request, response, stop.signal).catch((error) => {
      const status = statusOf(error);
      if (status === 500) console.error(error);
      if (!response.headersSent) response.writeHead(status, status === 503 ? { "retry-after": "10" } : {});
      response.end(status === 500 && !(error instanceof LtxError) ? "something went wrong\n" : `${error.message}\n`);
    });
  });
  server.listen(Number(port), () => console.log(`http://localhost:${server.address().port}`));
  // No new requests; those that are drawn have a while to end. A second signal ends them now.
  const end = () => {
    if (!server.listening) return stop.abort();
    server.close(() => pipeline.dispose());
    server.closeIdleConnections();
    setTimeout(() => stop.abort(), GRACE).unref();
  };
  for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, end);
}

main(process.argv.slice(2));
