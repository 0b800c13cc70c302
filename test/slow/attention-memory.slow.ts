/** Attention over the tokens of the example's pixel model needs no memory for their scores. */
import { expect, it } from "vitest";
import { attention, normal, sum } from "../../lib/ops/index.js";
import { backward, device } from "../../lib/tensor/index.js";

it("attends over 16 x 32 x 32 tokens, forward and backward, in a twentieth of what their scores take", async () => {
  const [length, width] = [16 * 32 * 32, 64];
  const [q, k, v] = [1, 2, 3].map((purpose) => normal([1, length, width], { seed: 1, step: 0, purpose }));
  for (const tensor of [q, k, v]) tensor.requiresGrad = true;
  const y = attention(q, k, v, { heads: 1 });
  const loss = sum(y);
  backward(loss);
  const gradient = await q.grad?.read();
  expect(gradient?.every(Number.isFinite)).toBe(true);
  expect(gradient?.some((g) => g !== 0)).toBe(true);
  const scores = 4 * length * length;
  expect(device().memory().peak).toBeLessThan(0.05 * scores);
  for (const tensor of [q, k, v, y, loss]) tensor.dispose();
});
