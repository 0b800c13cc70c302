/** Pictures, animations and videos. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { type Animation, saveAnimation, savePng } from "../../../lib/formats/images.js";
import { prepareMedia, readMedia } from "../../../lib/formats/media/index.js";
import { PpmFrames } from "../../../lib/formats/media/ppm.js";
import { readAnimation } from "../../../lib/formats/read-animation.js";
import { npyBytes } from "../../../test/support/npy.js";
import { jsonText, mutateBytes } from "../mutate.js";
import type { Random } from "../random.js";
import { must, type Target } from "../target.js";
import { crc32 } from "../zip.js";

const MAX_PIXELS = 1 << 20;

function check({ data, frames, height, width, channels }: Animation, most = Number.POSITIVE_INFINITY): void {
  for (const n of [frames, height, width])
    must(Number.isInteger(n) && n >= 1, () => `${frames} frames of ${width}x${height}`);
  must(frames <= most, () => `${frames} frames of at most ${most}`);
  must(
    data.length === frames * height * width * channels,
    () => `${data.length} bytes for ${frames}x${height}x${width}x${channels}`,
  );
}

const pixels = (frames: number, height: number, width: number): Animation => {
  const data = Uint8Array.from({ length: frames * height * width * 3 }, (_, i) => (i * 53 + (i >> 5)) & 255);
  return { data, frames, height, width, channels: 3 };
};

type Seeds = Map<string, Buffer>;

/** Each format that is read, still and moving. */
async function corpus(folder: string): Promise<Seeds> {
  sharp.cache(false); // which keeps files open, twenty at most
  const seeds: Seeds = new Map();
  const still = pixels(1, 12, 16);
  const raw = { width: 16, height: 12, channels: 3 as const };
  const image = () => sharp(still.data, { raw });
  seeds.set("a.png", await image().png().toBuffer());
  seeds.set("b.jpg", await image().jpeg().withMetadata({ orientation: 6 }).toBuffer());
  seeds.set("c.webp", await image().webp().toBuffer());
  seeds.set("d.tif", await image().tiff().toBuffer());
  seeds.set("e.avif", await image().avif({ effort: 0 }).toBuffer());
  seeds.set("f.png", await image().toColourspace("rgb16").png({ palette: false }).toBuffer());
  seeds.set("g.png", await image().ensureAlpha(0.5).png().toBuffer());
  for (const type of ["gif", "webp"]) {
    const path = join(folder, `seed.${type}`);
    await saveAnimation(path, pixels(3, 8, 8), { comment: "a video of nothing" });
    seeds.set(`h-${type}.${type}`, readFileSync(path));
  }
  await savePng(join(folder, "seed.png"), still, { comment: "a picture" });
  seeds.set("i.png", readFileSync(join(folder, "seed.png")));
  return seeds;
}

/** A PNG whose chunks are changed and have right checksums, so that the change is read. */
function mutatePng(random: Random, bytes: Buffer): Buffer {
  const chunks: { type: string; data: Buffer }[] = [];
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = bytes.readUInt32BE(at);
    chunks.push({
      type: bytes.toString("latin1", at + 4, at + 8),
      data: Buffer.from(bytes.subarray(at + 8, at + 8 + length)),
    });
    at += 12 + length;
  }
  const i = random.below(chunks.length);
  if (chunks[i].type === "IHDR" && random.chance(0.7)) {
    // Large sizes, but not those whose reading is a test of patience alone.
    chunks[i].data.writeUInt32BE(
      random.pick([0, 1, 3, 2 ** 31 - 1, 2 ** 32 - 1, random.below(4000)]),
      random.pick([0, 4]),
    );
  } else if (random.below(5) === 0) chunks.splice(i, 1);
  else if (random.below(4) === 0)
    chunks.splice(i, 0, { ...chunks[i], type: random.pick(["tEXt", "eXIf", "acTL", "fdAT", "iCCP", "tRNS", "PLTE"]) });
  else chunks[i].data = mutateBytes(random, chunks[i].data);
  const parts = chunks.flatMap(({ type, data }) => {
    const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
    const [length, crc] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(data.length);
    crc.writeUInt32BE(crc32(body));
    return [length, body, crc];
  });
  return Buffer.concat([bytes.subarray(0, 8), ...parts]);
}

const mutateImage = (random: Random, name: string, seeds: Seeds): Buffer => {
  const bytes = seeds.get(name) as Buffer;
  return name.endsWith(".png") && random.chance(0.6)
    ? mutatePng(random, bytes)
    : mutateBytes(random, bytes, [...seeds.values()]);
};

export const images: Target = {
  name: "images",
  // Headers may promise 100 megapixels, which take 0.3 GB a copy.
  maxMemory: 2 ** 31,
  about: "images and animations as conditioning media, and folders of images",
  weight: 3,
  async setup(folder) {
    const seeds = await corpus(folder);
    const place = join(folder, "frames");
    let before = "";
    return async (random) => {
      const name = random.pick([...seeds.keys()]);
      const bytes = mutateImage(random, name, seeds);
      const options = random.chance(0.3) ? { maxFrames: random.within(1, 3) } : {};
      let path = join(
        folder,
        `case-${random.chance(0.9) ? name : random.pick(["x.png", "x.jpg", "x.gif", "x.webp", "x.mp4", "x.svg", "x"])}`,
      );
      rmSync(before, { force: true });
      before = path;
      writeFileSync(path, bytes);
      if (random.chance(0.15)) {
        rmSync(place, { recursive: true, force: true });
        mkdirSync(place);
        writeFileSync(join(place, "1.png"), seeds.get("a.png") as Buffer);
        writeFileSync(join(place, random.pick(["2.png", ".2.png", "Thumbs.db", "2.txt", "10.PNG"])), bytes);
        if (random.chance(0.2)) symlinkSync(random.pick([place, path, "/nowhere"]), join(place, "3.png"));
        path = place;
      }
      const media = await readMedia(path, options);
      check(media, options.maxFrames);
      if (media.height * media.width > MAX_PIXELS) return;
      const { data } = await prepareMedia(media, { height: 32, width: 32 }, "conditioning", { crf: 0 });
      must(data.every(Number.isFinite), () => "a pixel that is no number");
    };
  },
};

export const animations: Target = {
  name: "animations",
  about: "animations, pictures and arrays as videos to continue",
  weight: 3,
  async setup(folder) {
    const seeds = await corpus(folder);
    seeds.set("j.npy", npyBytes("|u1", [3, 8, 8], pixels(1, 8, 8).data));
    let before = "";
    return async (random) => {
      const name = random.pick([...seeds.keys()]);
      const path = join(folder, `case-${name}`);
      rmSync(before, { force: true });
      before = path;
      writeFileSync(path, mutateImage(random, name, seeds));
      const size = random.pick([
        { height: 12, width: 16 },
        { height: 8, width: 8 },
        { height: 16, width: 16 },
      ]);
      check(await readAnimation(path, { ...size, channels: random.pick([1, 3]) }));
    };
  },
};

/** What a program that should write PPM may write. */
export const ppm: Target = {
  name: "ppm",
  about: "the stream of frames that ffmpeg writes",
  weight: 20,
  async setup() {
    const frame = (width: number, height: number, max = 255) =>
      Buffer.concat([Buffer.from(`P6\n${width} ${height}\n${max}\n`), Buffer.from(pixels(1, height, width).data)]);
    return async (random) => {
      const frames = Array.from({ length: random.within(1, 4) }, () =>
        frame(4, random.chance(0.9) ? 3 : 2, random.chance(0.95) ? 255 : 65535),
      );
      const stream = random.chance(0.6) ? mutateBytes(random, Buffer.concat(frames)) : Buffer.concat(frames);
      const reader = new PpmFrames();
      for (let at = 0; at < stream.length; ) {
        const end = at + (random.chance(0.5) ? random.within(1, 20) : stream.length);
        reader.push(stream.subarray(at, end));
        at = end;
      }
      if (reader.count > 0) check(reader.animation());
    };
  },
};

export const videos: Target = {
  name: "videos",
  about: "videos read through ffmpeg",
  weight: 0.1,
  async setup(folder) {
    const there = spawnSync("ffmpeg", ["-version"]).status === 0;
    const seeds: Seeds = new Map();
    const make = (name: string, ...args: string[]) => {
      const path = join(folder, `seed-${name}`);
      const source = ["-f", "lavfi", "-i", "testsrc=size=32x32:rate=8:duration=1"];
      try {
        execFileSync("ffmpeg", ["-v", "error", "-y", ...source, ...args, path], { stdio: "ignore" });
        seeds.set(name, readFileSync(path));
      } catch {
        // This ffmpeg lacks the encoder: the others are enough.
      }
    };
    if (there) {
      make("a.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p");
      make("b.mp4", "-c:v", "mpeg4");
      make("c.webm", "-c:v", "libvpx-vp9");
      make("d.mkv", "-c:v", "ffv1");
      make("e.avi", "-c:v", "mjpeg");
    }
    let before = "";
    return async (random) => {
      const playlist = random.chance(0.1) || seeds.size === 0;
      const name = playlist ? random.pick(["p.mp4", "p.mkv", "p.mov"]) : random.pick([...seeds.keys()]);
      const path = join(folder, `case-${name}`);
      rmSync(before, { force: true });
      before = path;
      const list = random.pick([
        `#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:${join(folder, "seed-a.mp4")}\n#EXT-X-ENDLIST\n`,
        `ffconcat version 1.0\nfile seed-a.mp4\n`,
        "<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>",
        `<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>seed-a.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>`,
      ]);
      const bytes = playlist ? Buffer.from(list) : mutateBytes(random, seeds.get(name) as Buffer, [...seeds.values()]);
      writeFileSync(path, bytes);
      const maxFrames = random.pick([1, 5, 40]);
      check(await readMedia(path, { maxFrames }), maxFrames);
      must(!playlist, () => `a playlist was read as a video: ${JSON.stringify(list.slice(0, 60))}`);
    };
  },
};

/** What is written into pictures as their comment has to come back, whatever the text. */
export const comments: Target = {
  name: "comments",
  about: "comments in GIF, WebP and PNG, written and read back",
  weight: 2,
  async setup(folder) {
    return async (random) => {
      const texts = [
        "",
        "x",
        "a prompt",
        "é",
        "\ud800",
        "\0",
        ";",
        "!\xfe",
        "x".repeat(255),
        "y".repeat(70_000),
        jsonText(random, { prompt: "é" }),
      ];
      const comment = random.pick(texts) + random.pick(texts);
      const type = random.pick(["gif", "webp", "png"]);
      const path = join(folder, `case.${type}`);
      const video = pixels(type === "png" ? 1 : 2, 4, 4);
      if (type === "png") await savePng(path, video, { comment });
      else await saveAnimation(path, video, { comment });
      const bytes = readFileSync(path);
      check(await readMedia(path));
      if (/^[\x20-\x7e]*$/.test(comment) && comment.length > 0 && comment.length < 200) {
        must(bytes.includes(comment), () => `the comment ${JSON.stringify(comment)} is not in the file`);
      }
    };
  },
};
