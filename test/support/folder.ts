/** For tests that must run where the addon is not built. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll } from "vitest";

export const root = join(__dirname, "..", "..");

/** A folder of the calling test file's own, removed after its tests. */
export function testFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "ltx-test-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
