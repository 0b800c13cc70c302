import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parseLossParams } from "../../lib/config/index.js";
import { discriminatorLoss, generatorLoss, VaeLoss, type VaeLossOptions } from "../../lib/losses/index.js";
import { Discriminator } from "../../lib/models/discriminator.js";
import { Lpips } from "../../lib/models/lpips.js";
import { Conv3d, Initializer } from "../../lib/nn/index.js";
import { concatLast, normal, uniform } from "../../lib/ops/index.js";
import { backward, device, noGrad, scope, Tensor } from "../../lib/tensor/index.js";
import { relativeError } from "../support/arrays.js";
import { tinyLpips } from "../support/lpips.js";

const key = (purpose: number) => ({ seed: 7, step: 0, purpose });
const init = () => new Initializer(device(), 9);
const target = uniform([2, 3, 16, 18, 1], key(0));
const hidden = normal([2, 3, 16, 18, 2], key(1));
const moments = normal([2, 1, 2, 2, 6], key(2));
/** Stands for a decoder: its last layer alone. */
const last = new Conv3d(2, 1, [1, 1, 1], init(), { bias: false });
const decode = () => last.forward(hidden);

const owned: { dispose(): void }[] = [target, hidden, moments, last];
afterAll(() => owned.forEach((owner) => void owner.dispose()));

const params = {
  perceptual_weight: 0,
  learned_logvar: false,
  kl_weight: 0,
  rec_loss: "l2",
  disc_num_layers: 1,
  use_reconstruction_gan: true,
  adversarial_weight: 0.5,
};
function create(changes: Record<string, unknown> = {}, options: VaeLossOptions = {}): VaeLoss {
  const config = parseLossParams({ ...params, ...changes }, "test", 1);
  const loss = new VaeLoss(config, init(), { discriminatorWidth: 4, ...options });
  owned.push(loss);
  return loss;
}
const forward = (loss: VaeLoss, step = 0) => loss.forward(target, decode(), moments, step, last.weight);

const mean = (values: ArrayLike<number>) => Array.from(values).reduce((a, b) => a + b, 0) / values.length;
async function gradientOf(value: () => Tensor): Promise<Float32Array> {
  scope(() => backward(value()));
  const result = Float32Array.from((await last.weight.grad?.read()) ?? []);
  last.zeroGrad();
  return result;
}
const norm = (values: Float32Array) => Math.hypot(...values);

describe("the game", () => {
  for (const disc_loss of ["hinge", "vanilla"] as const) {
    const penalty = (logit: number) => (disc_loss === "hinge" ? Math.max(0, 1 + logit) : Math.log1p(Math.exp(logit)));

    it(`is ${disc_loss} on each video alone`, async () => {
      const game = { disc_loss, use_reconstruction_gan: false };
      const model = new Discriminator({ inputChannels: 1, layers: 1, width: 4 }, init());
      owned.push(model);
      const fakeVideo = noGrad(decode);
      const logits = (x: Tensor) => noGrad(() => model.forward(x)).read();
      const [real, fake] = [await logits(target), await logits(fakeVideo)];
      const verdict = discriminatorLoss(game, model, target, fakeVideo);
      const expected = 0.5 * (mean(real.map((v) => penalty(-v))) + mean(fake.map(penalty)));
      expect(await verdict.loss.item()).toBeCloseTo(expected, 5);
      expect(await verdict.real.item()).toBeCloseTo(mean(real), 5);
      expect(await verdict.fake.item()).toBeCloseTo(mean(fake), 5);
      expect(await generatorLoss(game, model, target, fakeVideo).item()).toBeCloseTo(-mean(fake), 5);
    });

    it(`is ${disc_loss} on both videos side by side, in either order`, async () => {
      const game = { disc_loss, use_reconstruction_gan: true };
      const model = new Discriminator(
        { inputChannels: 2, outputChannels: 2, layers: 1, width: 4, use3d: false },
        init(),
      );
      owned.push(model);
      const fakeVideo = noGrad(decode);
      const maps = async (a: Tensor, b: Tensor) => {
        const values = await noGrad(() => model.forward(concatLast(a, b))).read();
        return [0, 1].map((map) => values.filter((_, i) => i % 2 === map));
      };
      const [fakeA, realA] = await maps(fakeVideo, target);
      const [realB, fakeB] = await maps(target, fakeVideo);
      const side = (real: ArrayLike<number>, fake: ArrayLike<number>) =>
        0.5 * (mean(Array.from(real, (v) => penalty(-v))) + mean(Array.from(fake, penalty)));
      const verdict = discriminatorLoss(game, model, target, fakeVideo);
      expect(await verdict.loss.item()).toBeCloseTo(side(realA, fakeA) + side(realB, fakeB), 5);
      expect(await verdict.real.item()).toBeCloseTo(mean(realA) + mean(realB), 5);
      expect(await verdict.fake.item()).toBeCloseTo(mean(fakeA) + mean(fakeB), 5);
      expect(await generatorLoss(game, model, target, fakeVideo).item()).toBeCloseTo(-mean(fakeA), 5);
    });
  }
});

describe("the generator's turn", () => {
  it("is weighted by the ratio of the gradients at the decoder's last weight", async () => {
    const loss = create();
    const data = await gradientOf(() => forward(create({ adversarial_weight: 0 })).loss);
    const game = loss.config;
    const model = loss.discriminator as Discriminator;
    const adversarial = await gradientOf(() => generatorLoss(game, model, target, decode()));
    model.zeroGrad();
    const expected = 0.5 * Math.min(1e4, norm(data) / (norm(adversarial) + 1e-4));

    const { loss: total, terms } = forward(loss);
    const weight = await terms.adversarial_weight.item();
    expect(weight / expected).toBeCloseTo(1, 4);
    expect(await total.item()).toBeCloseTo((await terms.nll.item()) + weight * (await terms.generator.item()), 3);
    const both = await gradientOf(() => forward(loss).loss);
    const sum = data.map((v, i) => v + weight * adversarial[i]);
    expect(relativeError(both, sum)).toBeLessThan(1e-4);
  });

  it("is held against what is minimised where that is no likelihood", async () => {
    const options = { use_nll: false };
    const data = await gradientOf(() => forward(create({ ...options, adversarial_weight: 0 })).loss);
    const loss = create(options);
    const adversarial = await gradientOf(() => {
      return generatorLoss(loss.config, loss.discriminator as Discriminator, target, decode());
    });
    loss.zeroGrad();
    const { terms } = forward(loss);
    expect(Object.keys(terms)).not.toContain("nll");
    const expected = (0.5 * norm(data)) / (norm(adversarial) + 1e-4);
    expect((await terms.adversarial_weight.item()) / expected).toBeCloseTo(1, 4);
  });

  it("keeps a plain weight where told to, and then needs no last weight", async () => {
    const loss = create({ use_adaptive_adversarial_weight: false });
    const { loss: total, terms } = loss.forward(target, decode(), moments, 0);
    expect(await terms.adversarial_weight.item()).toBe(0.5);
    const expected = (await terms.nll.item()) + 0.5 * (await terms.generator.item());
    expect(await total.item()).toBeCloseTo(expected, 3);
    expect(() => create().forward(target, decode(), moments, 0)).toThrow(/needs the decoder's last weight/);
  });

  it("leaves the discriminator alone, but for the reference", () => {
    const grads = (loss: VaeLoss) => {
      scope(() => backward(forward(loss).loss));
      const found = loss.discriminator?.parameters().filter((p) => p.grad !== null).length;
      loss.zeroGrad();
      last.zeroGrad();
      return found;
    };
    expect(grads(create())).toBe(0);
    expect(
      create()
        .discriminator?.parameters()
        .every((p) => p.requiresGrad),
    ).toBe(true);
    const reference = create({}, { compat: "reference" });
    expect(grads(reference)).toBe(reference.discriminator?.parameters().length);
    expect(grads(create({}, { compat: "reference", freezeDiscriminator: true }))).toBe(0);
  });
});

describe("the discriminator's turn", () => {
  it("moves the discriminator only", async () => {
    const loss = create();
    const reconstruction = Tensor.from(await noGrad(decode).read(), target.shape);
    reconstruction.requiresGrad = true;
    const { loss: value, terms } = loss.discriminate(target, reconstruction, 0) as ReturnType<VaeLoss["forward"]>;
    backward(value);
    expect(reconstruction.grad).toBeNull();
    expect(loss.discriminator?.parameters().every((p) => p.grad !== null)).toBe(true);
    expect(Object.keys(terms)).toEqual(["discriminator", "logits_real", "logits_fake"]);
    expect(await terms.discriminator.item()).toBeCloseTo(await value.item(), 6);
  });
});

describe("the start", () => {
  const starts = { adversarial_start: 4, disc_start: 2 };
  const batches = (loss: VaeLoss) =>
    [...(loss.discriminator?.namedState() ?? [])].find(([name]) => name.endsWith("tracked"))?.[1];

  it("of either side comes at its step; before it nothing of the game is computed", () => {
    const loss = create(starts);
    const reconstruction = decode();
    for (const step of [0, 3, 4]) {
      const { terms } = forward(loss, step);
      expect("generator" in terms).toBe(step >= 4);
    }
    expect(loss.discriminate(target, reconstruction, 1)).toBeNull();
    expect(batches(loss)).toMatchObject({ value: 1 });
    expect(loss.discriminate(target, reconstruction, 2)).not.toBeNull();
    expect(batches(loss)).toMatchObject({ value: 3 });
  });

  it("is not passed over in a run that goes on for longer than planned", () => {
    const loss = create({ adversarial_start: 4 }, { steps: 4 });
    expect(loss.discriminator).toBeNull();
    expect(() => forward(loss, 3)).not.toThrow();
    expect(() => forward(loss, 4)).toThrow(/step 4 is past adversarial_start 4, but .* planned for 4 steps .*steps$/);
  });

  it("changes the loss at its very step", async () => {
    const plain = await forward(create({ adversarial_weight: 0 })).loss.item();
    const loss = create(starts);
    expect(await forward(loss, 3).loss.item()).toBeCloseTo(plain, 3);
    expect(Math.abs((await forward(loss, 4).loss.item()) - plain)).toBeGreaterThan(1);
  });

  it("of the reference only brings the weights in: the game is played from step 0 on", async () => {
    const loss = create(starts, { compat: "reference" });
    const { loss: total, terms } = forward(loss, 0);
    expect(await total.item()).toBeCloseTo(await terms.nll.item(), 3);
    expect(await terms.adversarial_weight.item()).toBeGreaterThan(0);
    const verdict = loss.discriminate(target, decode(), 0);
    expect(await verdict?.loss.item()).toBe(0);
    expect(await verdict?.terms.logits_real.item()).not.toBe(0);
    expect(batches(loss)).toMatchObject({ value: 3 });
  });
});

describe("the perceptual term", () => {
  let create3: (changes: Record<string, unknown>) => Promise<VaeLoss>;
  let distance: number;
  beforeAll(async () => {
    const { net, layers } = await tinyLpips();
    const lpips = () => new Lpips(new Map([...net, ...layers]));
    create3 = async (changes) =>
      create({ adversarial_weight: 0, perceptual_weight: 0.25, ...changes }, { perceptual: lpips() });
    const model = lpips();
    distance = mean(await noGrad(() => model.forward(target, decode())).read());
    model.dispose();
  });

  it("adds to every element of its sample, from its start on", async () => {
    const loss = await create3({ use_nll: false, perceptual_start: 3 });
    const before = forward(loss, 2);
    expect(Object.keys(before.terms)).not.toContain("perceptual");
    const after = forward(loss, 3);
    expect(await after.terms.perceptual.item()).toBeCloseTo(distance, 5);
    expect(await after.loss.item()).toBeCloseTo((await before.loss.item()) + 0.25 * distance, 5);
    expect(await after.terms.reconstruction.item()).toBeCloseTo(await after.loss.item(), 5);
  });

  it("is divided by the variance with the rest of e", async () => {
    const nll = async (loss: VaeLoss) => (await forward(loss).terms.nll.item()) as number;
    const config = { learned_logvar: true, logvar_init: 0.3 };
    const more = (await nll(await create3(config))) - (await nll(create({ ...config, adversarial_weight: 0 })));
    expect(more / ((0.25 * distance * target.size) / 2 / Math.exp(0.3))).toBeCloseTo(1, 3);
  });

  it("passes its gradient on", async () => {
    const loss = await create3({ use_nll: false });
    const plain = create({ use_nll: false, adversarial_weight: 0 });
    const [withIt, without] = [await gradientOf(() => forward(loss).loss), await gradientOf(() => forward(plain).loss)];
    expect(relativeError(withIt, without)).toBeGreaterThan(1e-3);
    expect(loss.parameters()).toEqual([]);
  });
});
