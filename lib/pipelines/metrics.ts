/** Peak signal-to-noise ratio in dB of videos in [0, 1], over all their pixels; 100 when they are equal. */
export function psnr(squaredError: number, pixels: number): number {
  return squaredError === 0 ? 100 : -10 * Math.log10(squaredError / pixels);
}
