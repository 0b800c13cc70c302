import { afterEach, describe, expect, it, vi } from "vitest";

afterEach(() => {
  vi.doUnmock("sharp");
  vi.doUnmock("node:fs");
  vi.resetModules();
});

describe("sharp", () => {
  it("that can't be loaded is an LtxError that says why, each time", async () => {
    vi.doMock("sharp", () => {
      throw new Error("Could not load the sharp module");
    });
    // The class of a fresh module is another one.
    const { loadSharp, loadSharpWithFonts } = await import("../../lib/formats/text.js");
    for (const load of [loadSharp, loadSharpWithFonts, loadSharp]) {
      const error = await load().catch((e) => e);
      expect([error.name, error.code]).toEqual(["LtxError", "unavailable"]);
      expect(error.message).toContain("sharp, which reads and writes images, cannot be loaded");
      expect(error.message).toContain("ulimit -v");
    }
  });

  it("leaves the program's environment as it was, also where the system has no fonts", async () => {
    vi.doMock("node:fs", async (original) => ({
      ...(await original<typeof import("node:fs")>()),
      existsSync: () => false,
    }));
    const { loadSharpWithFonts } = await import("../../lib/formats/text.js");
    const before = process.env.FONTCONFIG_FILE;
    const sharp = await loadSharpWithFonts();
    expect(process.env.FONTCONFIG_FILE).toBe(before);
    const svg =
      '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><text y="15" font-family="DejaVu Sans">W</text></svg>';
    const { data } = await sharp(Buffer.from(svg)).raw().toBuffer({ resolveWithObject: true });
    expect(data.some((value) => value > 0)).toBe(true);
  });
});
