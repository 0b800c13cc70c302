import { execFileSync } from "node:child_process";
import { statSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { writeAll, writeFileAtomic } from "../../lib/formats/atomic-file.js";
import { writeModelFile } from "../../lib/pipelines/write-model.js";
import { testFolder } from "../support/folder.js";

const folder = testFolder();
const write = (path: string) => writeFileAtomic(path, (file) => writeAll(file, Buffer.from("x")));
const tensors = [{ name: "a", dtype: "U8", shape: [1], data: new Uint8Array(1) }] as const;

describe("what is no file is never replaced by one", () => {
  it("a pipe, and a socket", async () => {
    const pipe = join(folder, "pipe");
    execFileSync("mkfifo", [pipe]);
    const socket = join(folder, "socket");
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(socket, resolve));
    try {
      for (const path of [pipe, socket]) {
        const refused = {
          code: "io",
          message: `[write] ${path} is a device, pipe or socket, expected the name of a file`,
        };
        await expect(write(path)).rejects.toMatchObject(refused);
        await expect(writeModelFile(path, { tensors, metadata: {} } as never, true)).rejects.toMatchObject(refused);
      }
      expect(statSync(pipe).isFIFO()).toBe(true);
      expect(statSync(socket).isSocket()).toBe(true);
    } finally {
      server.close();
    }
  });

  it("a device, which a user who may write everywhere could replace", async () => {
    // Not by its own name: a test that fails must not take it from the machine.
    const path = join(folder, "null");
    try {
      execFileSync("mknod", [path, "c", "1", "3"], { stdio: "ignore" });
    } catch {
      return; // others than root can't make one, and can't replace one either
    }
    await expect(write(path)).rejects.toThrow("is a device, pipe or socket");
    expect(statSync(path).isCharacterDevice()).toBe(true);
  });
});
