/** examples/server.js as a process of its own, with the package as it is published. */
import { type ChildProcess, spawn } from "node:child_process";
import { copyFileSync, mkdirSync } from "node:fs";
import { request } from "node:http";
import { join } from "node:path";
import { createInterface } from "node:readline";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Compiled, compileLibrary } from "../support/compiled.js";
import { root, testFolder } from "../support/folder.js";
import { tinyCheckpoint, tinyTextEncoder } from "../support/tiny-official.js";

const folder = testFolder();
let library: Compiled;
let server: ChildProcess;
let url: string;
let complaints = "";

beforeAll(async () => {
  library = compileLibrary();
  const script = library.path("../examples/server.js");
  mkdirSync(join(script, ".."));
  copyFileSync(join(root, "examples", "server.js"), script);
  const argv = [script, tinyCheckpoint, await tinyTextEncoder(folder), "0"];
  server = spawn(process.execPath, argv, {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, OMP_WAIT_POLICY: "passive" },
  });
  server.stderr?.on("data", (chunk) => {
    complaints += chunk;
  });
  url = await new Promise((resolve, reject) => {
    createInterface({ input: server.stdout as NodeJS.ReadableStream }).once("line", resolve);
    server.once("exit", () => reject(new Error(complaints)));
  });
});
afterAll(() => {
  server.kill("SIGKILL");
  library.remove();
});

const TIMES = "1,0.9937,0.725,0.4219";
const ask = (options: Record<string, string>, signal?: AbortSignal): Promise<Response> =>
  fetch(`${url}/?${new URLSearchParams({ prompt: "three", timesteps: TIMES, ...options })}`, { signal });
const small = { height: "64", width: "96", num_frames: "9" };
const live = async (): Promise<number> => ((await (await fetch(`${url}/memory`)).json()) as { live: number }).live;

/** Waits until as much memory is held as before. */
async function settled(before: number): Promise<void> {
  for (let i = 0; i < 200 && (await live()) !== before; i++) await new Promise((resolve) => setTimeout(resolve, 50));
  expect(await live()).toBe(before);
}

describe("the server", () => {
  it("answers two at once, of whom one goes away: the other's video is whole and the memory free again", async () => {
    const first = Buffer.from(await (await ask(small)).arrayBuffer());
    expect(await sharp(first, { pages: -1 }).metadata()).toMatchObject({ width: 96, pageHeight: 64, pages: 9 });
    const before = await live();
    expect(before).toBeGreaterThan(0);

    const gone = new AbortController();
    const large = ask({ height: "512", width: "512", num_frames: "121" }, gone.signal).catch((error) => error);
    const both = ask(small);
    setTimeout(() => gone.abort(), 150);
    expect((await large).name).toBe("AbortError");
    expect(first.equals(Buffer.from(await (await both).arrayBuffer()))).toBe(true);
    await settled(before);
    expect(complaints).toBe("");
  });

  it("tells who asks for something impossible", async () => {
    const before = await live();
    const wrong = await ask({ ...small, height: "50" });
    expect(wrong.status).toBe(400);
    expect(await wrong.text()).toContain("height 50: needs a multiple of 32, nearest 32 or 64");
    expect((await ask({ ...small, num_frames: "10" })).status).toBe(400);
    expect(await live()).toBe(before);
  });

  it("bounds what is asked for, and knows its paths", async () => {
    const status = async (options: Record<string, string>) => {
      const response = await ask({ ...small, ...options });
      return [response.status, await response.text()];
    };
    expect(await status({ height: "32768", width: "32768" })).toEqual([400, "height 32768: at most 1920 here\n"]);
    expect(await status({ width: "NaN" })).toEqual([400, "width NaN: at most 1920 here\n"]);
    expect((await status({ height: "1024", width: "1024", num_frames: "257" }))[1]).toContain(
      "height x width x num_fr",
    );
    expect((await status({ timesteps: Array(100).fill(1).join(",") }))[1]).toBe("steps 100: at most 60 here\n");
    expect((await status({ prompt: "x".repeat(6000) }))[0]).toBe(400);
    const raw = (path: string, method = "GET") =>
      new Promise<number | undefined>((resolve, reject) => {
        const { hostname, port } = new URL(url);
        const sent = request({ hostname, port, path, method }, (response) => {
          response.resume();
          resolve(response.statusCode);
        });
        sent.on("error", reject).end();
      });
    expect(await raw("//")).toBe(400);
    expect(await raw("/favicon.ico")).toBe(404);
    expect(await raw("/", "POST")).toBe(405);
    expect(complaints).toBe("");
  });

  it("lets some wait, and tells the others to come back", async () => {
    const before = await live();
    const stop = new AbortController();
    const many = Array.from({ length: 24 }, () =>
      ask({ height: "256", width: "256", num_frames: "49" }, stop.signal).then(
        ({ status, headers }) => [status, headers.get("retry-after")],
        () => ["left", null],
      ),
    );
    // Two are drawn and sixteen wait: six are refused at once.
    let refused = 0;
    await new Promise<void>((resolve) => {
      for (const one of many) {
        one.then(([status, after]) => {
          if (status === 503 && after === "10" && ++refused === 6) resolve();
        });
      }
    });
    stop.abort();
    const ends = (await Promise.all(many)).map(([status]) => status);
    expect(ends.filter((status) => status === 503)).toHaveLength(6);
    expect(ends.every((status) => status === 503 || status === "left" || status === 200)).toBe(true);
    await settled(before);
    expect((await ask(small)).status).toBe(200);
  });

  it("ends when it is told to, after what it draws", async () => {
    const ended = new Promise((resolve) => server.once("exit", resolve));
    const last = ask(small);
    await new Promise((resolve) => setTimeout(resolve, 100));
    server.kill("SIGTERM");
    expect((await last).status).toBe(200);
    expect(await ended).toBe(0);
    expect(complaints).toBe("");
  });
});
