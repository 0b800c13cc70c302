/** The commands that work with a trained model: sample, extend, evaluate, and what they answer to wrong input. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { beforeAll, describe, expect, it } from "vitest";
import { call, eventsOf, start, testFolder, tinyFlowYaml, writeYaml } from "../support/tiny.js";
import { trainTiny } from "../support/tiny-models.js";

const folder = testFolder();
let run: string;
beforeAll(async () => {
  run = await trainTiny(folder);
});

let count = 0;
const fresh = () => join(folder, `out-${count++}`);
const pagesOf = async (path: string) => (await sharp(path, { animated: true }).metadata()).pages;
// biome-ignore lint/suspicious/noExplicitAny: events of several commands.
const events = (stdout: string) => eventsOf(stdout) as any[];

/** Runs a command on the tiny run, 3 sampling steps; its pictures go to a new folder. */
async function ok(command: string, ...argv: string[]): Promise<{ out: string; stdout: string }> {
  const out = fresh();
  const done = await call(command, "--checkpoint", run, "--steps", "3", "--out", out, ...argv);
  expect(done.code).toBe(0);
  // Its text encoder reads eight bytes.
  expect(done.stderr.replace(/^the model reads 8 tokens of a prompt: .*\n/gm, "")).toBe("");
  return { out, stdout: done.stdout };
}

async function fails(code: number, argv: string[], ...fragments: string[]): Promise<void> {
  const outcome = await call(...argv);
  for (const fragment of fragments) expect(outcome.stderr).toContain(fragment);
  expect(outcome).toMatchObject({ code, stdout: "" });
  expect(outcome.stderr).not.toMatch(/^\s+at /m);
}

const onRun = (command: string, ...argv: string[]) => [command, "--checkpoint", run, "--steps", "2", ...argv];

function schemeFile(params: Record<string, unknown>, target = "xdiffusion.samplers.schemes.Autoregressive"): string {
  const lines = Object.entries(params).map(([key, value]) => `    ${key}: ${value}`);
  return writeYaml(
    folder,
    `scheme-${count++}.yaml`,
    `sampling_scheme:\n  target: ${target}\n  params:\n${lines.join("\n")}\n`,
  );
}

const scheme = { video_length: 8, num_observed_frames: 0, max_frames: 5, step_size: 2 };

describe("sample", () => {
  it("takes prompts from a file and writes them beside the clips", async () => {
    const file = join(folder, "prompts.txt");
    writeFileSync(file, "three\r\n\n  \n7 \nünï 数\n");
    const { out } = await ok("sample", "--prompts-file", file, "--num-samples", "4");
    expect(readFileSync(join(out, "samples.txt"), "utf8")).toBe("three\n7 \nünï 数\nthree\n");
    const same = await ok("sample", "--prompt", "three", "--prompt", "7 ", "--prompt", "ünï 数", "--num-samples", "4");
    expect(readFileSync(join(same.out, "samples.gif"))).toEqual(readFileSync(join(out, "samples.gif")));
  });

  it("writes beside what it drew before, under the next name", async () => {
    const { out } = await ok("sample", "--prompt", "three");
    const first = readFileSync(join(out, "samples.gif"));
    const again = await call(...onRun("sample"), "--prompt", "4", "--out", out);
    expect(again.stdout).toBe(["gif", "png", "txt"].map((type) => `${join(out, `samples_1.${type}`)}\n`).join(""));
    expect(readFileSync(join(out, "samples.gif"))).toEqual(first);
    expect(readFileSync(join(out, "samples_1.txt"), "utf8")).toBe("4\n");
  });

  it("draws prompts as the data set has them where nobody gives any", async () => {
    const file = tinyFlowYaml((f) => {
      delete f.diffusion.sampling.prompts;
      delete f.diffusion.sampling.num_samples;
      f.data.digits = 2;
    });
    const config = writeYaml(folder, "promptless.yaml", file);
    const prompts = async (...argv: string[]) => {
      const { out } = await ok("sample", "--config", config, ...argv);
      return readFileSync(join(out, "samples.txt"), "utf8").trimEnd().split("\n");
    };
    const eight = await prompts();
    expect(eight).toHaveLength(8);
    const word = "(zero|one|two|three|four|five|six|seven|eight|nine|[0-9])";
    for (const prompt of eight) expect(prompt).toMatch(new RegExp(`^${word} and ${word}$`));
    expect(new Set(eight).size).toBeGreaterThan(4);
    expect((await prompts("--num-samples", "3")).slice(0, 3)).toEqual(eight.slice(0, 3));
    expect(await prompts("--seed", "9")).not.toEqual(eight);
  });

  it("draws more frames than the model's clip has, or fewer", async () => {
    const { out, stdout } = await ok("sample", "--frames", "8", "--json");
    expect(await pagesOf(join(out, "samples.gif"))).toBe(8);
    const steps = events(stdout).filter(({ type }) => type === "sample-step");
    expect(steps.map(({ step }) => step)).toEqual(Array.from({ length: 9 }, (_, i) => i + 1));
    expect(steps.every(({ steps }) => steps === 9)).toBe(true);
    const gif = (of: { out: string }) => readFileSync(join(of.out, "samples.gif"));
    expect(gif(await ok("sample", "--frames", "8", "--scheme", "autoregressive"))).toEqual(gif({ out }));
    expect(gif(await ok("sample", "--scheme", schemeFile(scheme)))).toEqual(gif({ out }));
    expect(gif(await ok("sample", "--frames", "8", "--overlap", "1"))).not.toEqual(gif({ out }));
    expect(await pagesOf(join((await ok("sample", "--frames", "3")).out, "samples.gif"))).toBe(3);
  });

  it("refuses prompts and schemes that make no sense", async () => {
    const empty = join(folder, "empty.txt");
    writeFileSync(empty, "\n \n");
    await fails(2, onRun("sample", "--prompts-file", empty), `${empty} holds no prompt`);
    await fails(2, onRun("sample", "--prompts-file", join(folder, "none.txt")), "cannot read", "ENOENT");
    await fails(2, onRun("sample", "--prompts-file", empty, "--prompt", "1"), "--prompt or --prompts-file, not both");
    writeFileSync(empty, Uint8Array.of(0xff, 0xfe, 0x00));
    await fails(2, onRun("sample", "--prompts-file", empty), "is not UTF-8 text");
    await fails(
      2,
      onRun("sample", "--scheme", "autoregressive"),
      "--scheme autoregressive needs the length",
      "--frames",
    );
    await fails(2, onRun("sample", "--overlap", "3"), "--overlap needs the length", "--frames");
    await fails(2, onRun("sample", "--frames", "9", "--overlap", "2"), "clips of 5 frames can share 1, 3");
    const file = schemeFile(scheme);
    await fails(2, onRun("sample", "--scheme", file, "--frames", "9"), file, "leave out --frames");
    await fails(2, onRun("sample", "--scheme", join(folder, "none.yaml")), "no such file");
    const wrong = async (params: object, ...fragments: string[]) =>
      fails(2, onRun("sample", "--scheme", schemeFile({ ...scheme, ...params })), ...fragments);
    await wrong({ step_size: 5 }, "line 7: sampling_scheme.params.step_size: found 5", "nearest 4");
    await wrong({ steps_size: 5 }, "sampling_scheme.params.steps_size: unknown key", 'did you mean "step_size"?');
    await wrong({ max_frames: 9 }, "max_frames 9: the model's clips have 5 frames");
    await wrong({ num_observed_frames: 3 }, "num_observed_frames 3", "extend continues given ones");
    const hierarchy = schemeFile(scheme, "xdiffusion.samplers.schemes.Hierarchy2");
    await fails(
      2,
      onRun("sample", "--scheme", hierarchy),
      'found "xdiffusion.samplers.schemes.Hierarchy2"',
      '"autoregressive"',
    );
  });
});

describe("extend", () => {
  it("continues held-out clips", async () => {
    const { out, stdout } = await ok("extend", "--rounds", "2", "--num-samples", "3", "--overlap", "1");
    expect(stdout).toBe(["gif", "png", "txt"].map((type) => `${join(out, `extended.${type}`)}\n`).join(""));
    expect(await pagesOf(join(out, "extended.gif"))).toBe(5 + 2 * 4);
    const prompts = readFileSync(join(out, "extended.txt"), "utf8").trimEnd().split("\n");
    expect(prompts).toHaveLength(3);
    const other = await ok("extend", "--num-samples", "3", "--seed", "8", "--prompt", "four");
    expect(readFileSync(join(other.out, "extended.txt"), "utf8")).toBe("four\nfour\nfour\n");
    expect(await pagesOf(join(other.out, "extended.gif"))).toBe(5 + 2);
    const once = await ok("extend", "--num-samples", "3", "--seed", "8", "--prompt", "four", "--resample", "1");
    const gifs = [other, once].map((of) => readFileSync(join(of.out, "extended.gif")));
    expect(gifs[0]).not.toEqual(gifs[1]);
  });

  it("continues a video from a file or a folder of images, scaled to the model's frames", async () => {
    const frame = (value: number) => ({
      create: { width: 64, height: 64, channels: 3 as const, background: { r: value, g: value, b: value } },
    });
    const images = join(folder, "images");
    mkdirSync(images);
    const values = [10, 60, 110, 160];
    for (const [i, value] of values.entries())
      await sharp(frame(value))
        .png()
        .toFile(join(images, `frame-${i + 8}.png`));
    const pixels = Buffer.concat(values.map((value) => Buffer.alloc(64 * 64 * 3, value)));
    const gif = join(folder, "source.gif");
    await sharp(pixels, { raw: { width: 64, height: 64 * 4, channels: 3, pageHeight: 64 } })
      .gif({ keepDuplicateFrames: true })
      .toFile(gif);
    const npy = join(folder, "source.npy");
    const header = "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 32, 32), }".padEnd(117);
    const start = Buffer.from(`\x93NUMPY\x01\x00\x76\x00${header}\n`, "latin1");
    writeFileSync(npy, Buffer.concat([start, ...values.map((value) => Buffer.alloc(32 * 32, value))]));
    for (const source of [images, gif, npy]) {
      const { out } = await ok("extend", "--source", source, "--prompt", "1", "--prompt", "2");
      const { data, info } = await sharp(join(out, "extended.gif"), { animated: true })
        .toColourspace("b-w")
        .raw()
        .toBuffer({ resolveWithObject: true });
      const page = (info.width * info.height) / 6;
      const seen = values.map((_, f) => data[(f * page + 20 * info.width + 20) * info.channels]);
      // A GIF's palette may be a shade off.
      for (const [i, value] of values.entries()) expect(Math.abs(seen[i] - value)).toBeLessThanOrEqual(1);
    }
  });

  it("refuses sources and overlaps that do not fit", async () => {
    await fails(
      2,
      onRun("extend", "--overlap", "4"),
      "4 frames are no whole number of latent frames",
      "can share 1, 3",
    );
    await fails(1, onRun("extend", "--source", join(folder, "none.gif")), "cannot read", "ENOENT");
    const wide = join(folder, "wide.png");
    await sharp({ create: { width: 32, height: 16, channels: 3, background: "black" } })
      .png()
      .toFile(wide);
    await fails(1, onRun("extend", "--source", wide), "is 32x16 pixels, expected the proportions of 16x16");
    const one = join(folder, "one.png");
    await sharp({ create: { width: 16, height: 16, channels: 3, background: "black" } })
      .png()
      .toFile(one);
    await fails(2, onRun("extend", "--source", one), "the source has 1 frames, fewer than the overlap of 3");
    const text = writeYaml(folder, "text.gif", "no picture");
    await fails(1, onRun("extend", "--source", text), `${text} is a text, which is not read as an image or a video`);
    const none = join(folder, "no-images");
    mkdirSync(none);
    await fails(1, onRun("extend", "--source", none), "holds no images");
    await fails(1, ["extend", "--checkpoint", join(run, "vae")], "is a vae checkpoint");
  });
});

describe("evaluate", () => {
  const small = ["--clips", "4", "--samples", "6", "--real-clips", "7", "--classifier-steps", "3"];
  const kept = () => readdirSync(join(run, "flow")).filter((name) => name.startsWith("digit-classifier-"));

  it("measures VAE and digits as JSON, and keeps the classifier in the run's folder", async () => {
    const { out, stdout } = await ok("evaluate", ...small, "--json");
    const seen = events(stdout);
    const progress = seen.filter(({ type }) => type === "progress");
    expect(progress.filter(({ what }) => what === "classifier").map(({ done }) => done)).toEqual([1, 2, 3]);
    expect(progress.filter(({ what }) => what === "samples")).toMatchObject([{ done: 6, total: 6 }]);
    const [vae, digits] = seen.slice(-2);
    expect(vae).toMatchObject({ type: "metrics", what: "vae", clips: 4 });
    expect(vae.psnr).toBeGreaterThan(5);
    expect(Math.abs(vae.ssim)).toBeLessThan(1);
    expect(vae.sharpness).toBeGreaterThan(0);
    expect(digits).toMatchObject({ type: "metrics", what: "digits", clips: 6 });
    for (const [score, clips] of [
      [digits.generated, 6],
      [digits.real, 7],
    ]) {
      const total = (key: string) =>
        score.perDigit.reduce((sum: number, row: Record<string, number>) => sum + row[key], 0);
      expect(total("shown")).toBe(clips);
      expect(score).toMatchObject({ clips, accuracy: total("recognised") / clips });
    }
    expect(seen.filter(({ type }) => type === "picture").map(({ path }) => path.slice(out.length + 1))).toEqual([
      ...["reconstructions.gif", "reconstructions.png", "samples.gif", "samples.png"],
    ]);
    expect(kept()).toHaveLength(1);
    const again = events((await ok("evaluate", ...small, "--json")).stdout);
    expect(again.filter(({ type, what }) => type === "progress" && what === "classifier")).toEqual([]);
    expect(again.slice(-2)).toEqual(seen.slice(-2));
    expect(kept()).toHaveLength(1);
  });

  it("prints a table for people, and agrees with reconstruct", async () => {
    const { out, stdout } = await ok("evaluate", ...small);
    expect(stdout).toMatch(
      /^VAE on 4 held-out clips: PSNR \d+\.\d\d dB, SSIM -?0\.\d{4}, sharpness \d+\.\d{3} of the originals'$/m,
    );
    expect(stdout).toMatch(/^digits all recognised: \d+\.\d % of 6 generated clips, \d+\.\d % of 7 real ones$/m);
    expect(stdout.match(/^ {4}\d +\d+ of \d+ +\d+ of \d+$/gm)).toHaveLength(10);
    const rec = await call("reconstruct", "--checkpoint", run, "--num-samples", "4", "--out", out);
    const [, psnr, ssim] = /PSNR (\S+) dB, SSIM (\S+) over 4/.exec(rec.stdout) ?? [];
    expect(stdout).toContain(`PSNR ${psnr} dB, SSIM ${ssim},`);
  });

  it("measures a VAE's run alone, and writes nothing unasked", async () => {
    const vae = join(run, "vae");
    const before = readdirSync(vae);
    const { code, stdout } = await call("evaluate", "--checkpoint", vae, "--clips", "3", "--json");
    expect(code).toBe(0);
    expect(events(stdout)).toMatchObject([{ type: "metrics", what: "vae", clips: 3 }]);
    expect(readdirSync(vae)).toEqual(before);
  });

  it("refuses what is no checkpoint and counts that are none", async () => {
    await fails(1, ["evaluate", "--checkpoint", join(folder, "nothing")], "does not exist");
    await fails(2, onRun("evaluate", "--clips", "0"), 'expected a whole number of at least 1, got "0"');
    await fails(2, onRun("evaluate", "--device", "tpu"), 'unknown device "tpu"');
  });
});

describe("interrupts", () => {
  const cases: [command: string, option: string][] = [
    ["sample", "--steps"],
    ["extend", "--steps"],
    ["evaluate", "--classifier-steps"],
  ];
  for (const [command, option] of cases) {
    it(`end ${command} with code 130 and no pictures`, async () => {
      const out = fresh();
      let lines = 0;
      const started = start([command, "--checkpoint", run, option, "10000", "--out", out, "--json"], {
        onLine: () => ++lines === 3 && started.child.kill("SIGINT"),
      });
      const { code, stderr } = await started.done;
      expect({ code, stderr }).toMatchObject({ code: 130, stderr: expect.stringContaining("stopped by the caller") });
      expect(existsSync(out)).toBe(false);
    });
  }
});
