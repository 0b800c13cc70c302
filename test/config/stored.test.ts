import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { loadConfig, parseStoredConfig } from "../../lib/config/index.js";
import { LtxError } from "../../lib/errors.js";
import { tinyFlow, tinyVae } from "../support/tiny.js";

const file = (name: string) => join(__dirname, "..", "..", "configs", `${name}.yaml`);

describe("parseStoredConfig", () => {
  it.each(["moving_mnist/autoencoder", "moving_mnist/ltx_video", "moving_mnist/ltx_video_pixel_space"])(
    "gives back what %s was resolved to",
    async (name) => {
      const config = await loadConfig(file(name));
      expect(parseStoredConfig(JSON.stringify(config), "a.safetensors")).toEqual(config);
    },
  );

  it("gives back both stages of a quickstart", () => {
    for (const config of [tinyVae(), tinyFlow()]) {
      expect(parseStoredConfig(JSON.stringify(config), "a.safetensors")).toEqual(config);
    }
  });

  it("gives back clips that are cut or repeated for a VAE", () => {
    const config = { ...tinyVae(), data: { ...tinyVae().data, frames: 9, source_frames: 5 } };
    expect(parseStoredConfig(JSON.stringify(config), "a.safetensors")).toEqual(config);
  });

  it("knows what older checkpoints lack", () => {
    const { gradient_checkpointing: _, ...training } = tinyVae().training;
    const { compat: __, ...config } = { ...tinyVae(), training };
    expect(parseStoredConfig(JSON.stringify(config), "a.safetensors")).toEqual(tinyVae());
  });

  it.each<[string, string, string]>([
    ["no JSON", "{", "its configuration is no JSON"],
    ["no object", "7", "cannot be read"],
    ["another kind", '{"kind":"gan"}', "cannot be read (kind: "],
    ["no sections", '{"kind":"vae"}', "vae: "],
  ])("refuses %s", (_, text, reason) => {
    const run = () => parseStoredConfig(text, "a.safetensors");
    expect(run).toThrow(LtxError);
    expect(run).toThrow(/^\[checkpoint\] a\.safetensors: its configuration /);
    expect(run).toThrow(reason);
  });

  it("reads or explains whatever a value is replaced by", () => {
    const value = fc.oneof(fc.jsonValue({ maxDepth: 1 }), fc.constantFrom(-1, 1e308, 0.5, "", null, [], {}));
    fc.assert(
      fc.property(
        fc.constantFrom(tinyVae(), tinyFlow()),
        fc.array(fc.nat(), { maxLength: 4 }),
        value,
        (config, way, value) => {
          const copy = JSON.parse(JSON.stringify(config));
          let node = copy;
          for (const [i, step] of [0, ...way].entries()) {
            const keys = Object.keys(node);
            const key = keys[(step + i) % keys.length];
            if (
              i === way.length ||
              typeof node[key] !== "object" ||
              node[key] === null ||
              Object.keys(node[key]).length === 0
            ) {
              node[key] = value;
              break;
            }
            node = node[key];
          }
          try {
            parseStoredConfig(JSON.stringify(copy), "a.safetensors");
          } catch (error) {
            expect(error).toBeInstanceOf(LtxError);
            expect((error as LtxError).code).toBe("checkpoint");
          }
        },
      ),
      { seed: 4, numRuns: 500 },
    );
  });
});
