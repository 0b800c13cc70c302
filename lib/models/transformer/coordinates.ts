/** Where latent voxels lie in the video that they stand for. */
import { finite, integer } from "../../arguments.js";
import { check } from "../../errors.js";
import { type Grid, gridPositions } from "./rope.js";

export interface CoordinateOptions {
  /** Video frames a latent frame stands for; 8 unless given. */
  temporalFactor?: number;
  /** Pixels a latent voxel is wide and high; 32 unless given. */
  spatialFactor?: number;
  /**
   * Whether the first latent frame stands for one video frame alone, as causal VAEs make it, so that latent frame k starts
   * at video frame 8k - 7. Models since 0.9.5 were trained so (`causal_temporal_positioning`), older ones with 8k.
   */
  causal: boolean;
  /** Video frames a second: with it, time is in seconds, else in frames. */
  frameRate?: number;
  /** The video frame at which the grid begins: that of a conditioning item. */
  firstFrame?: number;
}

/** The position (time, y, x) of every token of a latent grid, width fastest: the upper left corner of its voxel. */
export function latentCoordinates(grid: Grid, options: CoordinateOptions): [Float64Array, Float64Array, Float64Array] {
  const { temporalFactor = 8, spatialFactor = 32, causal, frameRate = 1, firstFrame = 0 } = options;
  for (const [name, factor] of Object.entries({ temporalFactor, spatialFactor })) {
    integer("coordinates", name, factor, 1);
  }
  finite("coordinates", "firstFrame", firstFrame);
  check(frameRate > 0 && Number.isFinite(frameRate), "invalid_argument", () => {
    return `[coordinates] the frame rate must be above 0, got ${frameRate}`;
  });
  const [frames, rows, columns] = gridPositions(grid);
  const shift = causal ? 1 - temporalFactor : 0;
  return [
    frames.map((frame) => (Math.max(0, frame * temporalFactor + shift) + firstFrame) / frameRate),
    rows.map((row) => row * spatialFactor),
    columns.map((column) => column * spatialFactor),
  ];
}
