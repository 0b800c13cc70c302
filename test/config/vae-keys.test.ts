import { describe, expect, it } from "vitest";
import { vaeConfigFromKeys } from "../../lib/config/official/vae-keys.js";
import { LtxError } from "../../lib/errors.js";
import { vaeShapes } from "../support/official.js";

const tensors = () => new Map([...vaeShapes("0.9.5")].map(([name, shape]) => [name, { shape }]));

describe("vaeConfigFromKeys", () => {
  it.each(["4000000000", "30000000", "99", "-1", "x", "1e9", ""])(
    "refuses a tensor of block %j, which no other block leads up to",
    (number) => {
      const found = tensors().set(`decoder.up_blocks.${number}.conv.conv.weight`, { shape: [8, 8, 3, 3, 3] });
      const read = () => vaeConfigFromKeys(found, "vae.safetensors");
      expect(read).toThrow(LtxError);
      expect(read).toThrow(/\[official\] vae\.safetensors: decoder\.up_blocks lacks block 7 of 8/);
    },
  );

  it("reads the blocks of a file whose numbers have no gap", () => {
    expect(vaeConfigFromKeys(tensors(), "vae.safetensors").decoder_blocks).toHaveLength(7);
  });
});
