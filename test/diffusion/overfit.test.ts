import { describe, expect, it } from "vitest";
import { parseTransformerParams } from "../../lib/config/index.js";
import { addNoise, eulerSample, velocityError, velocityTarget } from "../../lib/diffusion/index.js";
import { ByteTextEncoder } from "../../lib/models/text-encoder/index.js";
import { LtxVideoTransformer } from "../../lib/models/transformer/index.js";
import { Initializer } from "../../lib/nn/index.js";
import { mean, zeros } from "../../lib/ops/index.js";
import { Adam } from "../../lib/optim/index.js";
import { backward, device, noGrad, scope, Tensor } from "../../lib/tensor/index.js";

const cpu = device("cpu");
const params = parseTransformerParams(
  {
    input_spatial_size: 2,
    input_channels: 2,
    input_number_of_frames: 1,
    num_layers: 1,
    num_attention_heads: 2,
    attention_head_dim: 16,
    cross_attention_dim: 32,
    caption_channels: 16,
  },
  "test",
);

describe("training on one batch", () => {
  it("learns which clip each prompt means, through the text encoder too", async () => {
    const init = new Initializer(cpu, 1);
    const transformer = new LtxVideoTransformer(params, init);
    const text = new ByteTextEncoder({ width: 16, layers: 1, heads: 2, max_length: 8 }, init);
    const optimizer = new Adam([...transformer.parameters(), ...text.parameters()], { lr: 1e-2, maxGradNorm: 1 });
    const tokens = (await text.token_embedding.weight.read()).slice();
    const prompts = ["one", "two"];
    const clip = [1, -1, 0.5, 0, -0.5, 1, 0, -1];
    const x0 = Tensor.from([...clip, ...clip.map((v) => -v)], [2, 1, 2, 2, 2], { device: cpu });
    // Both clips start from the same noise at t = 0, so that nothing but the prompt tells them apart.
    const noise = Tensor.from(
      Float32Array.from({ length: 16 }, (_, i) => Math.sin(3 * (i % 8))),
      x0.shape,
      { device: cpu },
    );
    const start = zeros([2], { device: cpu });
    const velocity = (x: Tensor, t: Tensor): Tensor => {
      const { embeddings, mask } = text.encode(prompts);
      return transformer.forward(x, t, embeddings, mask);
    };
    const losses: Tensor[] = [];
    const live: number[] = [];
    for (let step = 0; step < 120; step++) {
      losses.push(
        scope(() => {
          const error = velocityError(velocity(addNoise(x0, noise, start), start), velocityTarget(x0, noise));
          const loss = mean(error);
          backward(loss);
          optimizer.step();
          return loss;
        }),
      );
      live.push(cpu.memory().live);
    }
    const [first, last] = [await losses[0].item(), await losses[119].item()];
    expect(first).toBeGreaterThan(0.5);
    expect(last).toBeLessThan(1e-2);
    // Each step leaves its loss behind, and nothing else.
    expect(live[119] - live[60]).toBe(59 * (live[61] - live[60]));
    expect(await text.token_embedding.weight.read()).not.toEqual(tokens);

    const { latents } = await eulerSample({ velocity, start: noise, steps: 1 });
    const sample = Array.from(await latents.read());
    const error = Math.sqrt([...sample].reduce((s, v, i) => s + (v - (i < 8 ? 1 : -1) * clip[i % 8]) ** 2, 0) / 16);
    expect(error).toBeLessThan(0.15);
    expect(noGrad(() => velocity(noise, start)).tracked).toBe(false);
  });
});
