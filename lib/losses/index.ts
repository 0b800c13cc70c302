export { adaptiveWeight, discriminatorLoss, generatorLoss, type Verdict } from "./adversarial.js";
export { klLoss } from "./kl.js";
export { reconstructionLoss } from "./reconstruction.js";
export { VaeLoss, type VaeLossOptions, type VaeLossTerms } from "./vae-loss.js";
export { waveletLoss } from "./wavelet.js";
