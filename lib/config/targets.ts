import { z } from "zod";

/**
 * What the `target:` strings of a configuration mean. The reference names Python classes there; here each stands for a
 * kind of component, and each kind also has a short name of its own.
 */
export const TARGETS = {
  vae: {
    "xdiffusion.autoencoders.ltx_vae.CausalVideoAutoencoder": "video-vae",
    "video-vae": "video-vae",
  },
  vae_loss: {
    "xdiffusion.autoencoders.losses.LPIPSWithDiscriminator": "vae-loss",
    "vae-loss": "vae-loss",
  },
  score_network: {
    "xdiffusion.score_networks.ltx_video.LTXVideoTransformer": "transformer",
    transformer: "transformer",
  },
  sampler: {
    "xdiffusion.samplers.rectified_flow.AncestralSampler": "euler",
    euler: "euler",
  },
  noise_scheduler: {
    "xdiffusion.scheduler.DiscreteRectifiedFlowNoiseScheduler": "rectified-flow",
    "rectified-flow": "rectified-flow",
  },
  sde: {
    "xdiffusion.sde.rectified_flow.RectifiedFlow": "rectified-flow",
    "rectified-flow": "rectified-flow",
  },
  text_encoder: {
    "xdiffusion.layers.embedding.T5TextEmbedder": "t5",
    t5: "t5",
    byte: "byte",
  },
  input_preprocessing: { "xdiffusion.context.IgnoreInputPreprocessor": "none" },
  unconditional_context: { "xdiffusion.context.UnconditionalTextPromptsAdapter": "empty-prompt" },
  context_head: { "torch.nn.Identity": "identity" },
} as const;

export type TargetRole = keyof typeof TARGETS;
export type TargetKind<Role extends TargetRole> = (typeof TARGETS)[Role][keyof (typeof TARGETS)[Role]];

/** The `target:` strings that `role` takes, or those of them that mean `kind`. */
export function targetNames<Role extends TargetRole>(role: Role, kind?: TargetKind<Role>): [string, ...string[]] {
  const names = Object.entries(TARGETS[role]).filter(([, k]) => kind === undefined || k === kind);
  return names.map(([name]) => name) as [string, ...string[]];
}

/** A schema of the `target:` strings of one role, giving the kind of the component. */
export function target<Role extends TargetRole>(role: Role) {
  const kinds: Record<string, string> = TARGETS[role];
  return z.enum(targetNames(role)).transform((name) => kinds[name] as TargetKind<Role>);
}
