import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "./parts.js";

/** The commit that this is: of the checkout, or noted when the archive was packed; null where neither says so. */
export function commit(): string | null {
  const packed = join(root, "COMMIT");
  if (existsSync(packed)) return readFileSync(packed, "utf8").trim() || null;
  const { status, stdout } = spawnSync("git", ["describe", "--always", "--dirty"], { cwd: root, encoding: "utf8" });
  return status === 0 ? stdout.trim() : null;
}
