/** The purpose numbers of random streams (RandomKey), one for each use, so that no two draws ever meet. */
export const Purpose = {
  posterior: 1,
  decoderAmplitude: 2,
  decoderNoise: 3,
  flowNoise: 4,
  flowTime: 5,
  latentScale: 6,
  layerNoise: 8,
  classifierNoise: 9,
  sampleNoise: 100,
  sampleLayerNoise: 101,
  sampleAgain: 102,
  /** 110 to 119: one for each kind of draw of the official pipelines. */
  officialDraw: 110,
  officialPlanes: 120,
} as const;

/** Added to a purpose for the draws of the reference's second pass through the VAE: 16 to 31 are its own. */
export const SECOND_PASS = 16;
