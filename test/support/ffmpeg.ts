/** ffmpeg for tests: where there is none they are skipped, except in continuous integration. */
import { execFileSync, spawnSync } from "node:child_process";

const found = spawnSync("ffmpeg", ["-version"]).status === 0;

/** For `it.skipIf`: a machine without ffmpeg cannot tell whether videos are right. */
export const withoutFfmpeg = !found && !process.env.CI;

export interface Probed {
  codec_name: string;
  width: number;
  height: number;
  pix_fmt: string;
  color_space: string;
  avg_frame_rate: string;
  nb_read_frames: string;
}

/** What ffprobe says of a file: its video stream, the frames counted, and the tags of the whole. */
export function probe(path: string): { stream: Probed; tags: Record<string, string> } {
  const args = ["-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json", path];
  const { streams, format } = JSON.parse(execFileSync("ffprobe", args, { encoding: "utf8" }));
  return { stream: streams[0], tags: format.tags ?? {} };
}

/** Sets variables of the environment while `run` runs. */
export async function withEnv<T>(values: Record<string, string>, run: () => Promise<T>): Promise<T> {
  const before = Object.keys(values).map((name) => [name, process.env[name]] as const);
  Object.assign(process.env, values);
  try {
    return await run();
  } finally {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  }
}
