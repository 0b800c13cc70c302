/** The files of a pipeline's models. */
import { check } from "../../errors.js";
import { causalPositions } from "../../formats/official/infer.js";
import { type OfficialModels, openOfficial } from "../../formats/official/open.js";

/**
 * Opens transformer and VAE: both in the checkpoint, or the VAE in a file of its own.
 * @throws LtxError as {@link openOfficial}, and `checkpoint` when one of them is nowhere
 */
export async function openFiles({ checkpoint, vae }: { checkpoint: string; vae?: string }): Promise<OfficialModels> {
  const files = await openOfficial(checkpoint);
  try {
    files.module("transformer");
    if (vae !== undefined) return await withVae(files, vae);
    check(files.kinds.includes("vae"), "checkpoint", () => {
      return (
        `[official] ${checkpoint} has a transformer and no VAE: name the VAE's file too (vae, --vae-path), as the ` +
        "release's own checkpoint is one, or take a checkpoint that has both"
      );
    });
    return files;
  } catch (error) {
    await files.close();
    throw error;
  }
}

async function withVae(files: OfficialModels, path: string): Promise<OfficialModels> {
  const own = await openOfficial(path);
  try {
    const vae = own.module("vae");
    const { transformer } = files.configs;
    // Without a word in the file, positions are told by the VAE.
    const told = files.metadata.config !== undefined;
    const causal = causalPositions(vae, Number(transformer?.num_layers));
    return {
      ...files,
      kinds: [...new Set([...files.kinds, "vae" as const])],
      configs: {
        ...files.configs,
        vae: own.configs.vae,
        transformer: told ? transformer : { ...transformer, causal_temporal_positioning: causal },
      },
      module: (kind) => (kind === "vae" ? vae : files.module(kind)),
      async close() {
        await own.close();
        await files.close();
      },
    };
  } catch (error) {
    await own.close();
    throw error;
  }
}
