/** The names of a LoRA's tensors, in the spellings of all programs that write LoRAs for LTX-Video. */
import { renameTransformerKey } from "./keys.js";

/** `lora_A` or `lora_down`, `lora_B` or `lora_up`, the small matrix between them, and the scale times the rank. */
export type LoraPart = "down" | "up" | "mid" | "alpha";

export type LoraName =
  | {
      kind: "part";
      /** Of the module whose weight changes, as the official code calls it. */
      module: string;
      part: LoraPart;
      /** Whether the name is one of PEFT's own, which keeps alpha in a file of its own. */
      peft: boolean;
    }
  /** Of a text encoder, whose LoRAs are left out. */
  | { kind: "text encoder" }
  /** A LoRA's tensor, of a module that no LTX-Video transformer has. */
  | { kind: "foreign"; module: string }
  /** Something that is no plain LoRA. */
  | { kind: "unsupported"; what: string }
  | { kind: "unknown" };

const TEXT_ENCODER =
  /^(?:base_model\.(?:model\.)?)?(?:text_encoders?(?:_\d)?\.|(?:lora|lycoris)_(?:prior_)?(?:te\d?|text_encoder(?:_\d)?|t5xxl|t5)_|te\d?\.|(?:lora_)?t5xxl\.)/;

/** Module, then which matrix it is; PEFT puts the adapter's name between. */
const MATRIX =
  /^(.+?)(?:\.lora_([AB])|\.lora_(down|up|mid)|[._]lora\.(down|up)|\.lora_linear_layer\.(down|up))(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?$/;
const ALPHA = /^(.+)\.alpha$/;

/** Other adapters than plain LoRAs, by the ends of their names. */
const UNSUPPORTED: readonly (readonly [RegExp, string])[] = [
  [/\.(?:dora_scale|lora_magnitude(?:_vector)?(?:\.[^.]+)?(?:\.weight)?)$/, "DoRA (a magnitude beside the matrices)"],
  [/\.lokr_(?:w[12]|t[12])/, "LoKr (Kronecker products)"],
  [/\.hada_(?:w[12]|t[12])/, "LoHa (Hadamard products)"],
  [/\.(?:oft|boft)_/, "OFT (rotations of weights)"],
  [/\.ia3_l(?:\.|$)|\.on_input$/, "IA3 (factors of activations)"],
  [/vera_lambda_/, "VeRA (shared random matrices)"],
  [/\.lora_embedding_[AB]/, "a LoRA of an embedding"],
  [/\.lora_(?:[AB]|down|up)(?:\.[^.]+)?\.bias$/, "a LoRA with biases (lora_bias)"],
  [/\.(?:diff|diff_b|w_norm|b_norm)$/, "a whole difference of a weight or bias"],
  [/\.set_weight$/, "a weight to put in a weight's place"],
  [/\.reshape_weight$/, "a LoRA that changes a weight's shape"],
  [/\.(?:a1|a2|b1|b2)\.weight$/, "GLoRA"],
];

/** The modules with a weight of two axes, within a block and outside. */
const BLOCK_MODULES = [
  ...["attn1", "attn2"].flatMap((name) => ["to_q", "to_k", "to_v", "to_out.0"].map((part) => `${name}.${part}`)),
  "ff.net.0.proj",
  "ff.net.2",
];
const ROOT_MODULES = [
  "patchify_proj",
  "proj_out",
  "adaln_single.emb.timestep_embedder.linear_1",
  "adaln_single.emb.timestep_embedder.linear_2",
  "adaln_single.linear",
  "caption_projection.linear_1",
  "caption_projection.linear_2",
];
const KNOWN_IN_BLOCK = new Set(BLOCK_MODULES);
const KNOWN_ROOTS = new Set(ROOT_MODULES);

const underscored = (modules: readonly string[]): Map<string, string> =>
  new Map(
    modules.flatMap((module) => {
      const diffusers = renameTransformerKey(`${module}.weight`, "diffusers").slice(0, -".weight".length);
      return [module, diffusers].map((name) => [name.replaceAll(".", "_"), module] as const);
    }),
  );
const UNDERSCORED_IN_BLOCK = underscored(BLOCK_MODULES);
const UNDERSCORED_ROOTS = underscored(ROOT_MODULES);

/** What programs put before a module's path, one word after another: `transformer.base_model.model.` and the like. */
const WORD_BEFORE = /^(?:base_model|model|diffusion_model|transformer|unet|dit|module|_orig_mod)\./;
/** The same of names whose dots are underscores, as kohya's and LyCORIS's. */
const UNDERSCORED = /^(?:lora|lycoris|unet|transformer|dit|base_model|model|diffusion_model)_(.+)$/;

/** The official module of a name without its end; undefined where the transformer has none of it. */
function officialModule(name: string): string | undefined {
  let module = name;
  while (WORD_BEFORE.test(module)) module = module.replace(WORD_BEFORE, "");
  if (!module.includes(".")) {
    const found = fromUnderscores(module);
    if (found) return found;
  }
  // Of diffusers' attention processors, which called the output's projection as the list that holds it.
  module = module.replace(/\.processor\.(?=to_)/, ".").replace(/\.to_out$/, ".to_out.0");
  module = renameTransformerKey(`${module}.weight`, "official").slice(0, -".weight".length);
  const [, inBlock] = /^transformer_blocks\.\d+\.(.+)$/.exec(module) ?? [];
  return (inBlock === undefined ? KNOWN_ROOTS.has(module) : KNOWN_IN_BLOCK.has(inBlock)) ? module : undefined;
}

function fromUnderscores(name: string): string | undefined {
  // The words before are cut off one by one: "transformer_" begins the blocks' own name too.
  for (let rest: string | undefined = name; rest !== undefined; rest = UNDERSCORED.exec(rest)?.[1]) {
    const [, block, inBlock] = /^transformer_blocks_(\d+)_(.+)$/.exec(rest) ?? [];
    const module = block === undefined ? UNDERSCORED_ROOTS.get(rest) : UNDERSCORED_IN_BLOCK.get(inBlock);
    if (module) return block === undefined ? module : `transformer_blocks.${block}.${module}`;
  }
  return undefined;
}

/** What a tensor of a LoRA's file is, by its name. */
export function parseLoraName(name: string): LoraName {
  if (TEXT_ENCODER.test(name)) return { kind: "text encoder" };
  const other = UNSUPPORTED.find(([pattern]) => pattern.test(name));
  if (other) return { kind: "unsupported", what: other[1] };
  const [, module, letter, word, old, linear] = MATRIX.exec(name) ?? [];
  const [, scaled] = module === undefined ? (ALPHA.exec(name) ?? []) : [];
  const path = module ?? scaled;
  if (path === undefined) return { kind: "unknown" };
  const official = officialModule(path);
  if (official === undefined) return { kind: "foreign", module: path };
  const given = word ?? old ?? linear;
  const part: LoraPart =
    scaled !== undefined ? "alpha" : letter ? (letter === "A" ? "down" : "up") : (given as LoraPart);
  return { kind: "part", module: official, part, peft: name.startsWith("base_model.model.") };
}

/** Whether a name is one of an adapter's matrices, whatever the model that it is for. */
export function isAdapterName(name: string): boolean {
  if (/[._]alpha$|\.(?:diff|diff_b|set_weight|w_norm|b_norm|reshape_weight|[ab][12]\.weight)$/.test(name)) return false;
  return MATRIX.test(name) || UNSUPPORTED.some(([pattern]) => pattern.test(name));
}

/** What a module of LTX-2 has in its name that no LTX-Video model has: its sound, its gates, its prompts' tables. */
export const isLtx2Name = (name: string): boolean => /(?:^|[._])audio_|av_ca_|prompt_adaln|to_gate_logits/.test(name);
