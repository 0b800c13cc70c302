import { deepStrictEqual } from "node:assert";
import { resizeBicubic } from "../../../lib/formats/media/bicubic.js";
import { blur } from "../../../lib/formats/media/blur.js";
import { crop, type PixelClip, resizeAndCrop, resizeBilinear } from "../../../lib/formats/media/clip.js";
import { centerBox, conditioningFrames, paddedSize, promptWords } from "../../../lib/formats/media/sizes.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";

/** A video (B, C, F, H, W) as frames, channels last: (B·F, H, W, C). */
function clipOf(fixture: Fixture, name: string): PixelClip {
  const [batch, channels, frames, height, width] = fixture.shape(name);
  const source = fixture.data(name);
  const area = height * width;
  const data = new Float32Array(source.length);
  for (let b = 0; b < batch; b++) {
    for (let c = 0; c < channels; c++) {
      for (let f = 0; f < frames; f++) {
        const from = ((b * channels + c) * frames + f) * area;
        const to = (b * frames + f) * area;
        for (let i = 0; i < area; i++) data[(to + i) * channels + c] = source[from + i];
      }
    }
  }
  return { data, frames: batch * frames, height, width, channels };
}

/** The way back, to (B, C, F, H, W). */
function channelsFirst({ data, height, width, channels, ...clip }: PixelClip, batch: number): Float32Array {
  const frames = clip.frames / batch;
  const area = height * width;
  const result = new Float32Array(data.length);
  for (let b = 0; b < batch; b++) {
    for (let c = 0; c < channels; c++) {
      for (let f = 0; f < frames; f++) {
        const to = ((b * channels + c) * frames + f) * area;
        const from = (b * frames + f) * area;
        for (let i = 0; i < area; i++) result[to + i] = data[(from + i) * channels + c];
      }
    }
  }
  return result;
}

/** The rules about sizes and names that the file lists as JSON. */
function checkRules({ padding, filename, frames }: Fixture["config"]): void {
  for (const { height, width, num_frames, ...expected } of padding) {
    const size = paddedSize({ height, width, frames: num_frames });
    const { left, right, top, bottom } = size.padding;
    const found = [size.height, size.width, size.frames, [left, right, top, bottom]];
    const { height_padded, width_padded, num_frames_padded, padding_left_right_top_bottom } = expected;
    deepStrictEqual(found, [height_padded, width_padded, num_frames_padded, padding_left_right_top_bottom]);
  }
  for (const { prompt, max_len, expected } of filename) deepStrictEqual(promptWords(prompt, max_len), expected);
  for (const { start_frame, sequence_num_frames, target_num_frames, trimmed } of frames) {
    deepStrictEqual(conditioningFrames(start_frame, sequence_num_frames, target_num_frames), trimmed);
  }
}

/** Images cut, resized and blurred as conditioning media are; videos resized as the pipeline does it. */
export const mediaLoad: GoldenCase = async (fixture) => {
  checkRules(fixture.config.expected);
  const result = new Map<string, Float32Array>();
  for (const spec of fixture.config.cases) {
    if (spec.video !== undefined) {
      const { video, new_height: height, new_width: width } = spec;
      const name = `input/video_${video}`;
      const clip = clipOf(fixture, name);
      const [batch] = fixture.shape(name);
      result.set(`output/resize_${video}`, channelsFirst(await resizeBilinear(clip, height, width), batch));
      result.set(`output/resize_and_crop_${video}`, channelsFirst(await resizeAndCrop(clip, height, width), batch));
      continue;
    }
    const { index, height, width, target_height, target_width, just_crop: onlyCrop, crop_box } = spec;
    const target = { height: target_height, width: target_width };
    const box = centerBox({ height, width }, target);
    deepStrictEqual([box.left, box.top, box.left + box.width, box.top + box.height], crop_box);
    const data = Uint8Array.from(fixture.data(`input/image_${index}`));
    const cut = crop({ data, frames: 1, height, width, channels: 3 }, box);
    const fitted = onlyCrop ? cut : await resizeBicubic(cut, target_height, target_width);
    const clip = { ...fitted, frames: 1 };
    result.set(`output/resized_${index}`, channelsFirst({ ...clip, data: Float32Array.from(fitted.data) }, 1));
    result.set(`output/blurred_${index}`, channelsFirst({ ...clip, data: await blur(fitted) }, 1));
  }
  return result;
};
