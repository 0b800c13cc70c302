import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { setTimeout } from "node:timers/promises";
import { expect, it } from "vitest";
import { startOfProcess } from "../../lib/formats/process-start.js";

it("is that of a process which runs, and of no other", async () => {
  expect(await startOfProcess(process.pid)).toMatch(/^\d+$/);
  expect(await startOfProcess(2 ** 30)).toBe("");
});

it("is none of a process which has ended, and is only still listed", async () => {
  // The shell's place is taken by a program that never asks what became of its child.
  const parent = spawn("/bin/sh", ["-c", "sleep 0.1 & echo $!; exec sleep 30"], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  try {
    const pid = Number(
      await new Promise<string>((resolve) => parent.stdout.once("data", (text) => resolve(String(text)))),
    );
    const state = () => readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1][0];
    for (let i = 0; i < 200 && state() !== "Z"; i++) await setTimeout(20);
    expect(state()).toBe("Z");
    expect(await startOfProcess(pid)).toBe("");
  } finally {
    parent.kill("SIGKILL");
  }
});
