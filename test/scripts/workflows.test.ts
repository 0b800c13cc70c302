/** The workflows can only run on GitHub; what can be known of them here is checked here. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parse } from "yaml";
import { root } from "../support/folder.js";

interface Step {
  run?: string;
  uses?: string;
  shell?: string;
}
interface Job {
  "runs-on": string | string[];
  needs?: string | string[];
  steps: Step[];
  "timeout-minutes"?: number;
}

const folder = join(root, ".github", "workflows");
const read = (path: string) => parse(readFileSync(path, "utf8"), { strict: true, uniqueKeys: true });
const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

describe.each(readdirSync(folder))("%s", (file) => {
  const workflow: { on: object; permissions: object; jobs: Record<string, Job> } = read(join(folder, file));
  const jobs = Object.entries(workflow.jobs);

  it("may write nothing, and every job ends", () => {
    expect(workflow.permissions).toEqual({ contents: "read" });
    for (const [, job] of jobs) expect(job["timeout-minutes"]).toBeGreaterThan(0);
  });

  it.each(jobs)("runs in %s only what exists", (_, job) => {
    for (const need of [job.needs ?? []].flat()) expect(workflow.jobs).toHaveProperty(need);
    expect(job["runs-on"]).toBeDefined();
    for (const { run, uses } of job.steps) {
      expect([run, uses].filter((value) => typeof value === "string")).toHaveLength(1);
      for (const [, script] of run?.matchAll(/npm run (?:--silent )?([\w:-]+)/g) ?? []) {
        expect(scripts).toHaveProperty([script]);
      }
      for (const [path] of run?.matchAll(/(?<=^|\s)\.\/?\w[\w./-]*(?=\s|$)/gm) ?? []) {
        expect(existsSync(join(root, path)), path).toBe(true);
      }
      if (uses?.startsWith("./")) {
        const action = read(join(root, uses, "action.yml"));
        for (const step of action.runs.steps as Step[]) expect(step.shell).toBe("bash");
      } else if (uses !== undefined) {
        expect(uses).toMatch(/^[\w-]+\/[\w-]+@v\d+$/);
      }
    }
  });
});

describe("package.json", () => {
  it("has no script that npm would take for another's hook", () => {
    // npm runs "preX" before and "postX" after "X": a script named build would make the prebuilds each time.
    for (const name of Object.keys(scripts)) {
      for (const hook of [`pre${name}`, `post${name}`]) expect(scripts).not.toHaveProperty([hook]);
    }
  });
});
