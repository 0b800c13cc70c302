/** The Hugging Face cache as it may lie on anybody's disk: links, references, half downloads, files for folders. */
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { hubSnapshots } from "../../../lib/formats/hub-cache.js";
import { findT5Folder } from "../../../lib/models/text-encoder/t5-folder.js";
import { findReleaseFiles } from "../../../lib/pipelines/release/files.js";
import { must, type Target } from "../target.js";

const REPOSITORY = "models--Lightricks--LTX-Video";

export const hubCache: Target = {
  name: "hub-cache",
  about: "the Hugging Face cache with links, references and half downloads",
  weight: 4,
  async setup(folder) {
    const home = join(folder, "hub");
    return async (random) => {
      rmSync(home, { recursive: true, force: true });
      const at = join(home, REPOSITORY);
      mkdirSync(at, { recursive: true });
      const word = () =>
        random.pick([
          "main",
          "abc123",
          "..",
          "../../..",
          "",
          "\n",
          "\0",
          "a b",
          "é",
          "x".repeat(300),
          "snapshots",
          "abc123\n",
        ]);
      const tries: (() => void)[] = [
        () => mkdirSync(join(at, "snapshots", "abc123"), { recursive: true }),
        () => writeFileSync(join(at, "snapshots"), ""),
        () => mkdirSync(join(at, "refs"), { recursive: true }),
        () => writeFileSync(join(at, "refs", "main"), word()),
        () => mkdirSync(join(at, "refs", "main"), { recursive: true }),
        () =>
          symlinkSync(random.pick([at, "/nowhere", "..", "main"]), join(at, "snapshots", "abc123", "ltxv.safetensors")),
        () => writeFileSync(join(at, "snapshots", "abc123", "ltxv.safetensors"), random.bytes(random.below(40))),
        () => mkdirSync(join(at, "snapshots", "abc123", "ltxv.safetensors")),
        () => symlinkSync("abc123", join(at, "snapshots", "abc123")),
        () => writeFileSync(join(at, "snapshots", ".DS_Store"), ""),
        () => mkdirSync(join(at, "snapshots", "abc123", "text_encoder"), { recursive: true }),
      ];
      for (let i = random.within(1, 8); i > 0; i--) {
        try {
          random.pick(tries)();
        } catch {
          // What is there already stays.
        }
      }
      const env = random.pick([
        { HF_HUB_CACHE: home },
        { HF_HOME: folder },
        { XDG_CACHE_HOME: folder },
        { HF_HUB_CACHE: home, LTX_MODELS: at },
      ]);
      for (const path of await hubSnapshots("Lightricks/LTX-Video", env))
        must(path.startsWith(folder), () => `the snapshot ${path}`);
      const name = random.chance(0.8) ? "ltxv.safetensors" : word();
      if (random.chance(0.5)) return void (await findT5Folder({ version: "Lightricks/LTX-Video" }, { env }));
      const config = { checkpoint_path: name, text_encoder_model_name_or_path: "Lightricks/LTX-Video" };
      const found = await findReleaseFiles(config as never, join(folder, "x.yaml"), env);
      must(found.checkpoint.length > 0, () => "no path");
    };
  },
};
