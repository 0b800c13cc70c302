import { afterEach, describe, expect, it } from "vitest";
import { ffmpeg } from "../../../lib/formats/media/ffmpeg.js";

const before = process.env.LTX_FFMPEG;
afterEach(() => {
  if (before === undefined) delete process.env.LTX_FFMPEG;
  else process.env.LTX_FFMPEG = before;
});

describe("a program that can't be started is an LtxError", () => {
  it("when Node throws at once: an argument longer than the system takes", async () => {
    await expect(ffmpeg(["x".repeat(2 ** 18)], { what: "reading a.mp4" })).rejects.toMatchObject({
      code: "io",
      message: "[ffmpeg] reading a.mp4: spawn E2BIG",
    });
  });

  it.each([
    ["/nowhere/ffmpeg", "unavailable", /\/nowhere\/ffmpeg was not found: install it/],
    ["/dev/null/ffmpeg", "unavailable", /\/dev\/null\/ffmpeg was not found/],
    ["/dev/null", "unavailable", /\/dev\/null was not found/],
    ["a\0b", "io", /null bytes/],
  ])("named by LTX_FFMPEG=%j", async (program, code, message) => {
    process.env.LTX_FFMPEG = program;
    // The environment ends a value at a zero byte: what it holds then is another program.
    if (process.env.LTX_FFMPEG !== program) return;
    await expect(ffmpeg([], { what: "reading a.mp4" })).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
  });
});
