/** The adversarial game: a discriminator tells reconstructions from the originals, the decoder tries to pass for one. */
import type { VaeLossConfig } from "../config/index.js";
import type { Discriminator } from "../models/discriminator.js";
import {
  add,
  affine,
  clamp,
  concatLast,
  globalNorm,
  mean,
  mul,
  reciprocal,
  relu,
  sliceLast,
  softplus,
} from "../ops/index.js";
import { gradients, type Tensor } from "../tensor/index.js";

type Game = Pick<VaeLossConfig, "disc_loss" | "use_reconstruction_gan">;

/** The largest adaptive weight. */
const MAX_WEIGHT = 1e4;

/**
 * What the decoder minimises: minus the mean logit of its reconstruction, (1) f32. The reconstruction GAN shows the
 * discriminator both videos side by side and has a map of logits for each: the reconstruction's comes first.
 * @param target the video (B,F,H,W,C) f32
 * @param reconstruction alike
 */
export function generatorLoss(
  game: Game,
  discriminator: Discriminator,
  target: Tensor,
  reconstruction: Tensor,
): Tensor {
  if (!game.use_reconstruction_gan) return affine(mean(discriminator.forward(reconstruction)), -1);
  const logits = discriminator.forward(concatLast(reconstruction, target));
  return affine(mean(sliceLast(logits, 0, 1)), -1);
}

/** What the discriminator minimises, and the mean logits it gave: (1) f32 each. */
export interface Verdict {
  loss: Tensor;
  real: Tensor;
  fake: Tensor;
}

/**
 * The discriminator's turn. The reconstruction GAN is played with the two videos in either order; losses and logits of
 * both are added up.
 */
export function discriminatorLoss(
  game: Game,
  discriminator: Discriminator,
  target: Tensor,
  reconstruction: Tensor,
): Verdict {
  if (!game.use_reconstruction_gan) {
    const [real, fake] = [target, reconstruction].map((video) => discriminator.forward(video));
    return { loss: judge(game, real, fake), real: mean(real), fake: mean(fake) };
  }
  const maps = (first: Tensor, second: Tensor): [Tensor, Tensor] => {
    const logits = discriminator.forward(concatLast(first, second));
    return [sliceLast(logits, 0, 1), sliceLast(logits, 1, 1)];
  };
  const [fakeFirst, realSecond] = maps(reconstruction, target);
  const [realFirst, fakeSecond] = maps(target, reconstruction);
  return {
    loss: add(judge(game, realSecond, fakeFirst), judge(game, realFirst, fakeSecond)),
    real: add(mean(realSecond), mean(realFirst)),
    fake: add(mean(fakeFirst), mean(fakeSecond)),
  };
}

/** Half the penalties of both sides: a logit should be above 1 for real and below -1 for fake (hinge), or as far apart as may be (vanilla). */
function judge({ disc_loss }: Game, real: Tensor, fake: Tensor): Tensor {
  const penalty = (logits: Tensor, sign: 1 | -1) =>
    mean(disc_loss === "hinge" ? relu(affine(logits, sign, 1)) : softplus(affine(logits, sign)));
  return affine(add(penalty(real, -1), penalty(fake, 1)), 0.5);
}

/**
 * The weight that brings the generator loss to the strength of the other one (VQGAN): |∂ loss / ∂ w| / (|∂ generator / ∂ w|
 * + 1e-4), at most 1e4, with w the decoder's last weight; (1) f32, a constant to the gradient.
 */
export function adaptiveWeight(loss: Tensor, generator: Tensor, lastWeight: Tensor): Tensor {
  const [own, adversarial] = [loss, generator].map((value) => globalNorm(gradients(value, [lastWeight])));
  return clamp(mul(own, reciprocal(affine(adversarial, 1, 1e-4))), 0, MAX_WEIGHT);
}
