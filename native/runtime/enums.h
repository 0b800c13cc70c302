// Numbers that JavaScript passes as scalars; lib/ops/enums.ts holds the same values.
#pragma once
namespace ltx {
enum Unary {
  kUnaryNone = 0,
  kSilu = 1,
  kGeluTanh = 2,
  kSigmoid = 3,
  kExp = 4,
  kSquare = 5,
  kAbs = 6,
  kClamp = 7,
  kSqrt = 8,
  kRelu = 9,
  kTanh = 10,
  kLeakyRelu = 11,
  kSoftplus = 12,
  kReciprocal = 13,
  kGelu = 14
};
enum Norm { kNormNone = 0, kNormPixel = 1, kNormRms = 2, kNormLayer = 3, kNormGroup = 4 };
enum Reduce { kSum = 0, kSumSquares = 1 };
enum Loss { kL1 = 0, kL2 = 1 };
// Which of the offsets inside a patch is slowest, behind the channel: time, height, width (depth to space) or time,
// width, height (patchify).
enum PatchOrder { kTimeHeightWidth = 0, kTimeWidthHeight = 1 };
}  // namespace ltx
