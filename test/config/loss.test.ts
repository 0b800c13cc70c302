import { describe, expect, it } from "vitest";
import { parseConfig } from "../../lib/config/index.js";
import { tinyVae, tinyVaeYaml } from "../support/tiny.js";

/** The message about a tiny VAE's file with these keys in its loss. */
function messageOf(loss: Record<string, unknown>, also: Record<string, unknown> = {}): string {
  const text = tinyVaeYaml((file) => {
    Object.assign(file.vae_config.params.loss_config.params, loss);
    Object.assign(file, also);
  });
  try {
    parseConfig(text, "tiny.yaml");
  } catch (error) {
    return (error as Error).message;
  }
  return "";
}

describe("the VAE's loss", () => {
  it("takes one file of perceptual weights, or several", () => {
    for (const perceptual_checkpoint of ["vgg.pth", ["vgg16.pth", "lpips.pth"]]) {
      const config = tinyVae((file) => {
        Object.assign(file.vae.vae_config.params.loss_config.params, { perceptual_weight: 1, perceptual_checkpoint });
      });
      expect(config.loss.perceptual_checkpoint).toEqual(perceptual_checkpoint);
    }
    expect(messageOf({ perceptual_checkpoint: [] })).toContain("perceptual_checkpoint");
    expect(messageOf({ perceptual_checkpoint: "" })).toContain("perceptual_checkpoint");
  });

  it("does not look at videos that are too small for its networks", () => {
    const perceptual = { perceptual_weight: 1, perceptual_checkpoint: "vgg.pth" };
    const data = { source: "moving-mnist", frames: 5, height: 8, width: 16, num_channels: 1, digits: 1, digit_size: 6 };
    expect(messageOf(perceptual, { data })).toContain(
      "perceptual_weight: above 0 needs videos of 16x16 or more with 1 or 3 channels, found 8x16 with 1 channels",
    );
    const needed =
      /disc_num_layers: found 3, which needs frames, height and width of 24 or more \(here 5x16x16\); use /;
    expect(messageOf({ adversarial_weight: 1 })).toMatch(needed);
    expect(messageOf({}, { compat: "reference" })).toMatch(/use compat: native with adversarial_weight: 0/);
    expect(messageOf({})).toBe("");
  });
});
