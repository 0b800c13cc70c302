import { afterAll, describe, expect, it } from "vitest";
import { parseLossParams } from "../../lib/config/index.js";
import { klLoss, reconstructionLoss, VaeLoss, type VaeLossOptions, waveletLoss } from "../../lib/losses/index.js";
import { Initializer } from "../../lib/nn/index.js";
import { normal, reshape, sliceFirst, uniform } from "../../lib/ops/index.js";
import { backward, device, Tensor } from "../../lib/tensor/index.js";
import { relativeError } from "../golden/support/check.js";

const key = (purpose: number) => ({ seed: 5, step: 0, purpose });
const target = uniform([2, 3, 4, 6, 2], key(0));
const made = uniform([2, 3, 4, 6, 2], key(1));
const moments = normal([2, 2, 1, 1, 8], key(2));
afterAll(() => [target, made, moments].forEach((tensor) => void tensor.dispose()));

const only = { perceptual_weight: 0, adversarial_weight: 0, use_3d: true };
const create = (changes: Record<string, unknown> = {}, options?: VaeLossOptions) =>
  new VaeLoss(parseLossParams({ ...only, ...changes }, "test", 2), new Initializer(device()), options);

/** The documented loss in plain double arithmetic. */
async function expected(options: { kind: "l1" | "l2"; wavelet?: number; logvar?: number }) {
  const [x, y, m] = (await Promise.all([target.read(), made.read(), moments.read()])).map((values) => [...values]);
  const bands = [...(await waveletLoss(made, target).read())]; // (2, 2), which the golden fixtures hold
  const elements = x.length / 2;
  const errors = x.map((v, i) => {
    const sampleAndChannel = Math.floor(i / elements) * 2 + (i % 2);
    const pixel = options.kind === "l1" ? Math.abs(v - y[i]) : (v - y[i]) ** 2;
    return pixel + (options.wavelet ?? 0) * bands[sampleAndChannel];
  });
  const mean = (values: number[]) => values.reduce((s, v) => s + v, 0) / values.length;
  const logvars = [0, 1].map((b) => mean(m.slice(16 * b, 16 * b + 16).filter((_, i) => i % 8 >= 4)));
  const logvarOf = (i: number) => options.logvar ?? logvars[Math.floor(i / elements)];
  const nll = errors.reduce((s, e, i) => s + e / Math.exp(logvarOf(i)) + logvarOf(i), 0) / 2;
  const means = m.filter((_, i) => i % 8 < 4);
  const variances = m.filter((_, i) => i % 8 >= 4);
  const kl = means.reduce((s, v, i) => s + 0.5 * (v * v + Math.exp(variances[i]) - 1 - variances[i]), 0) / 2;
  return { nll, kl, mean: mean(errors), sum: mean(errors) * elements, wavelet: mean(bands), logvar: mean(logvars) };
}

describe("the parts", () => {
  it("sums over a sample, averages over the batch", async () => {
    const a = Tensor.from([1, 2, 3, 4], [2, 2]);
    const b = Tensor.from([2, 0, 3, 8], [2, 2]);
    expect([...(await reconstructionLoss("l1", a, b).read())]).toEqual([3, 4]);
    expect([...(await reconstructionLoss("l2", a, b).read())]).toEqual([5, 16]);
    expect(await klLoss(Tensor.from([2, 0, 0, 0], [2, 1, 2])).item()).toBeCloseTo(1);
  });

  it("measures the coarsest band of a constant difference", async () => {
    const video = Tensor.from(new Float32Array(16).fill(0.5), [1, 2, 2, 4, 1]);
    const black = Tensor.from(new Float32Array(16), [1, 2, 2, 4, 1]);
    // Only LLL sees it: 8 · 0.5 / √8 over 8 bands.
    expect(await waveletLoss(video, black).item()).toBeCloseTo(4 / Math.sqrt(8) / 8);
  });
});

describe("vae loss", () => {
  it("is the likelihood with each posterior's variance, KL and wavelet terms", async () => {
    const loss = create({ rec_loss: "l2", learned_logvar: false, wavelet_loss_weight: 0.5, kl_weight: 0.1 });
    const { loss: total, terms } = loss.forward(target, made, moments, 0);
    const want = await expected({ kind: "l2", wavelet: 0.5 });
    expect(await total.item()).toBeCloseTo(want.nll + 0.1 * want.kl, 3);
    expect(await terms.nll.item()).toBeCloseTo(want.nll, 3);
    expect(await terms.kl.item()).toBeCloseTo(want.kl, 4);
    expect(await terms.reconstruction.item()).toBeCloseTo(want.mean, 5);
    expect(await terms.wavelet.item()).toBeCloseTo(want.wavelet, 5);
    expect(await terms.logvar.item()).toBeCloseTo(want.logvar, 5);
    expect(loss.parameters()).toEqual([]);
  });

  it("weighs samples, in what is minimised alone", async () => {
    const weights = Tensor.from([0.25, 2], [2]);
    const given = { rec_loss: "l1", learned_logvar: false, wavelet_loss_weight: 0.3, kl_weight: 0 };
    const [first, second] = [0, 1].map((i) => [target, made, moments].map((x) => sliceFirst(x, i, 1)));
    for (const changes of [
      given,
      { ...given, learned_logvar: true, logvar_init: 0.4 },
      { ...given, use_nll: false, rec_reduction: "sum" },
      { ...given, use_nll: false, rec_reduction: "mean" },
    ]) {
      const loss = create(changes);
      const alone = [];
      for (const [x, y, m] of [first, second]) alone.push(await loss.forward(x, y, m, 0).loss.item());
      const { loss: total, terms } = loss.forward(target, made, moments, 0, null, weights);
      const wanted = (0.25 * alone[0] + 2 * alone[1]) / 2;
      expect(Math.abs((await total.item()) / wanted - 1)).toBeLessThan(1e-5);
      if (terms.nll) expect(Math.abs((await terms.nll.item()) / ((alone[0] + alone[1]) / 2) - 1)).toBeLessThan(1e-5);
    }
    for (const wrong of [Tensor.from([1, 2, 3], [3]), Tensor.from([1, 2], [2, 1])])
      expect(() => create(given).forward(target, made, moments, 0, null, wrong)).toThrow(
        "[vae loss] weights expects f32 [2], one for each sample",
      );
  });

  it("learns one variance", async () => {
    const loss = create({ rec_loss: "l1", learned_logvar: true, logvar_init: 0.3, kl_weight: 0 });
    const { loss: total } = loss.forward(target, made, null, 0);
    const want = await expected({ kind: "l1", logvar: 0.3 });
    expect(await total.item()).toBeCloseTo(want.nll, 3);
    backward(total);
    expect([...loss.namedParameters()].map(([name]) => name)).toEqual(["logvar"]);
    // d/dv Σ (e exp(-v) + v) / B
    expect(await loss.logvar?.grad?.item()).toBeCloseTo(144 - want.sum * Math.exp(-0.3), 3);
  });

  it.each([["mean"], ["sum"]] as ["mean" | "sum"][])("reduces the plain error by %s", async (rec_reduction) => {
    const loss = create({ use_nll: false, rec_reduction, wavelet_loss_weight: 0.25, kl_weight: 0 });
    const { loss: total, terms } = loss.forward(target, made, moments, 0);
    const want = await expected({ kind: "l1", wavelet: 0.25 });
    expect(await total.item()).toBeCloseTo(want[rec_reduction], 3);
    expect(Object.keys(terms).sort()).toEqual(["reconstruction", "wavelet"]);
  });

  it("leaves a term out before its start, and shows it", async () => {
    const loss = create({ use_nll: false, wavelet_loss_weight: 0.5, wavelet_start: 3, kl_weight: 1, kl_start: 4 });
    const plain = await expected({ kind: "l1" });
    const both = await expected({ kind: "l1", wavelet: 0.5 });
    const at = async (step: number) => {
      const { loss: total, terms } = loss.forward(target, made, moments, step);
      expect(await terms.kl.item()).toBeCloseTo(both.kl, 4);
      expect(await terms.wavelet.item()).toBeCloseTo(both.wavelet, 5);
      return total.item();
    };
    expect(await at(2)).toBeCloseTo(plain.mean, 4);
    expect(await at(3)).toBeCloseTo(both.mean, 4);
    expect(await at(4)).toBeCloseTo(both.mean + both.kl, 4);
  });

  it("passes the gradients of reconstruction and moments", async () => {
    const loss = create({ rec_loss: "l2", learned_logvar: false, kl_weight: 0.5 });
    const y = Tensor.from(await made.read(), made.shape);
    const m = Tensor.from(await moments.read(), moments.shape);
    y.requiresGrad = true;
    m.requiresGrad = true;
    const value = async () => {
      const { loss: total } = loss.forward(target, y, m, 0);
      const result = await total.item();
      total.dispose();
      return result;
    };
    backward(loss.forward(target, y, m, 0).loss);
    for (const tensor of [y, m]) {
      const values = Float32Array.from(await tensor.read());
      const slope: number[] = [];
      const indices = [0, 5, 6, 11];
      for (const i of indices) {
        const sides: number[] = [];
        for (const h of [0.05, -0.05]) {
          tensor.write(values.map((v, j) => (j === i ? v + h : v)));
          sides.push(await value());
        }
        tensor.write(values);
        slope.push((sides[0] - sides[1]) / 0.1);
      }
      const grad = await tensor.grad!.read();
      expect(
        relativeError(
          indices.map((i) => grad[i]),
          slope,
        ),
      ).toBeLessThan(5e-3);
    }
  });

  it("says what has no effect and what does not fit", () => {
    expect(create({ adversarial_weight: 0.5, adversarial_start: 10 }, { steps: 10 }).discriminator).toBeNull();
    expect(create({ perceptual_weight: 0.5 }).notices).toEqual([
      "perceptual_weight 0.5 has no effect: the perceptual loss needs LPIPS weights, and perceptual_checkpoint is not set",
    ]);
    expect(create({ perceptual_weight: 0.5, perceptual_start: 10 }, { steps: 10 }).notices).toEqual([]);
    expect(() => create({ learned_logvar: false }).forward(target, made, null, 0)).toThrow(/set learned_logvar/);
    expect(() => create().forward(target, uniform([1, 3, 4, 6, 2], key(0)), moments, 0)).toThrow(
      /\[1,3,4,6,2\], the video \[2,3,4,6,2\]/,
    );
  });

  it("takes images, which share one log-variance where the reference's do", async () => {
    const [x, y] = [target, made].map((video) => reshape(video, [6, 4, 6, 2]));
    const latents = normal([6, 1, 1, 8], key(3));
    const values = await latents.read();
    const logvars = [...values].filter((_, i) => i % 8 >= 4);
    const options = { rec_loss: "l2", learned_logvar: false, kl_weight: 0, use_3d: false, disc_num_layers: 1 };
    const each = create(options).forward(x, y, latents, 0);
    const shared = create(options, { compat: "reference", discriminatorWidth: 2 });
    expect(() => shared.forward(x, y, latents, 0, shared.discriminator?.parameters()[0])).toThrow(/6 or more/);
    const mean = logvars.reduce((a, b) => a + b, 0) / logvars.length;
    expect(await each.terms.logvar.item()).toBeCloseTo(mean, 5);
    const errors = await reconstructionLoss("l2", y, x).read();
    const own = [...errors].map((e, b) => {
      const logvar = logvars.slice(4 * b, 4 * b + 4).reduce((s, v) => s + v, 0) / 4;
      return e / Math.exp(logvar) + 48 * logvar;
    });
    expect(await each.loss.item()).toBeCloseTo(own.reduce((a, b) => a + b, 0) / 6, 3);
  });
});
