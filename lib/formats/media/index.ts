export { firstFrames, type Padding, type PixelClip } from "./clip.js";
export { type ConditioningOptions, prepareMedia } from "./prepare.js";
export { type ReadMediaOptions, readMedia } from "./read.js";
export { conditioningFrames, type PaddedSize, paddedSize } from "./sizes.js";
export { type WriteVideoOptions, writeVideo } from "./write-video.js";
