// The geometry of a 3-D convolution, channels last, and what its three passes share on the way to 16-byte copies.
#pragma once
#include "common.cuh"

namespace ltx::cuda {

// x (B,F,H,W,Ci), y (B,F',H',W',Co), w (Co,kt,kh,kw,Ci). Positions (pixels of all frames of all clips) fit 32 bits,
// elements need not.
struct Conv3d {
  int batch, frames, height, width, in;
  int out_frames, out_height, out_width, out;
  int kernel_t, kernel_h, kernel_w;
  int stride_t, stride_h, stride_w, front, pad_h, pad_w;
  // Frames before the first and behind the last are those, not zeros.
  bool replicate;

  LTX_HD int positions() const { return batch * frames * height * width; }
  LTX_HD int out_positions() const { return batch * out_frames * out_height * out_width; }
  LTX_HD int taps() const { return kernel_t * kernel_h * kernel_w; }
};

// Where the first tap of an output position falls: frames are counted over all clips from `clip` on; t, h, w may lie
// in the padding.
struct Corner {
  int clip, t, h, w;
};

// Of output position 0 <= p < out_positions().
LTX_DEVICE Corner corner(const Conv3d& s, int p) {
  const uint32_t line = static_cast<uint32_t>(p) / s.out_width, column = p - line * s.out_width;
  const uint32_t frame = line / s.out_height, row = line - frame * s.out_height;
  const uint32_t clip = frame / s.out_frames;
  return {static_cast<int>(clip) * s.frames, static_cast<int>(frame - clip * s.out_frames) * s.stride_t - s.front,
          static_cast<int>(row) * s.stride_h - s.pad_h, static_cast<int>(column) * s.stride_w - s.pad_w};
}

// The input position under tap (kt, kh, kw) of a corner, -1 for a zero.
LTX_DEVICE int input_position(const Conv3d& s, const Corner& at, int kt, int kh, int kw) {
  int t = at.t + kt;
  const int h = at.h + kh, w = at.w + kw;
  if (s.replicate) t = min(max(t, 0), s.frames - 1);
  // Unsigned: below zero is beyond the end.
  const bool inside = static_cast<uint32_t>(t) < static_cast<uint32_t>(s.frames) &&
                      static_cast<uint32_t>(h) < static_cast<uint32_t>(s.height) &&
                      static_cast<uint32_t>(w) < static_cast<uint32_t>(s.width);
  return inside ? ((at.clip + t) * s.height + h) * s.width + w : -1;
}

// From the shapes of x and y, w's kernel (its shape or dw's) and the scalars of ops.def.
Conv3d conv3d_geometry(const Call& call, Operand x, Operand y, Operand w);

// Rows of `channels` elements as rows of `padded` (zeros behind), in a scratch slot; the rows themselves where they
// have that length and start at a multiple of 16 bytes. So every row is made of whole 16-byte pieces.
template <class T>
const T* whole_rows(const Call& call, int slot, const T* rows, int64_t count, int channels, int padded);

// y (count / columns, columns) = the sum of partials (splits, count), in order, + bias (columns) + residual; both may
// be null. At most 2^31 elements.
template <class T>
void sum_partials(const Call& call, const float* partials, int splits, int64_t count, int columns, const float* bias,
                  const T* residual, T* y);

// Channels rounded up to 16 bytes.
template <class T>
constexpr int padded_channels(int channels) {
  return (channels + kVector<T> - 1) / kVector<T> * kVector<T>;
}

}  // namespace ltx::cuda
