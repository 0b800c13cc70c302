// The data gradient of a 3-D convolution, gathered: a row is an input position, and K goes through the output positions
// that read it. Tap k of output o reads input o stride + k - pad, so
// - only taps of one residue reach an input position. Input positions are sorted into phases (residues of t, h and w
//   modulo the strides), a block belongs to one of them and visits its taps alone; in there output positions step down
//   by one from tap to tap;
// - a repeated frame is also read from the padding: by every (output frame, tap) that falls there. Such pairs are
//   further taps of the blocks that hold the first or the last frame, and are the same for all their rows.
// Frames are the slowest index of the rows, so that few blocks hold a repeated frame and a block skips the taps that
// its frames don't have.
#include "conv3d_tiles.cuh"

namespace ltx::cuda {
namespace {

// Along an axis the input positions residue + i stride, and the outputs that read them: input i is read by output
// i + shift - j through tap first_tap + j stride, for j < taps.
struct Phase {
  int residue, count, first_tap, taps, shift;

  LTX_DEVICE Phase(int residue, int size, int kernel, int stride, int pad)
      : residue(residue),
        count((size - residue + stride - 1) / stride),
        first_tap((residue + pad) % stride),
        taps(first_tap < kernel ? (kernel - first_tap + stride - 1) / stride : 0),
        shift((residue + pad - first_tap) / stride) {}
};

// Residues that have positions.
LTX_HD int phases(int size, int stride) { return size < stride ? size : stride; }

constexpr int kFirst = 1, kLast = 2;  // bits of the repeated frames

struct InputGradient {
  static constexpr bool kTransposed = true;
  struct Row {
    int clip, t, h, w, ends;
  };
  const Conv3d& s;
  Phase w, h, t;
  int first, rows;          // the block's first row in its phase; rows of the phase
  int first_tap, last_tap;  // of t, that some row has, and behind the last
  int front_end = 0;        // output frames [0, front_end) read the padding before the first frame, if it is here
  int back = 0;             // those from here on read the padding behind the last
  int all_taps;

  LTX_DEVICE InputGradient(const Conv3d& s, int tile, int tiles, int tile_rows)
      : InputGradient(s, tile / tiles, phases(s.width, s.stride_w), phases(s.height, s.stride_h),
                      tile % tiles * tile_rows, tile_rows) {}
  LTX_DEVICE InputGradient(const Conv3d& s, int phase, int phases_w, int phases_h, int first, int tile_rows)
      : s(s),
        w(phase % phases_w, s.width, s.kernel_w, s.stride_w, s.pad_w),
        h(phase / phases_w % phases_h, s.height, s.kernel_h, s.stride_h, s.pad_h),
        t(phase / phases_w / phases_h, s.frames, s.kernel_t, s.stride_t, s.front),
        first(first),
        rows(t.count * frame_rows()) {
    const int low = min(first, rows - 1) / frame_rows(), high = (min(first + tile_rows, rows) - 1) / frame_rows();
    first_tap = max(0, low + t.shift - (s.out_frames - 1));
    last_tap = min(t.taps, high + t.shift + 1);
    all_taps = max(0, last_tap - first_tap);
    if (s.replicate && ends_of(low) & kFirst) {
      front_end = min(s.out_frames, (s.front + s.stride_t - 1) / s.stride_t);
      for (int o = 0; o < front_end; ++o) all_taps += min(s.kernel_t, s.front - o * s.stride_t);
    }
    if (s.replicate && ends_of(high) & kLast) {
      back = max(0, (s.frames + s.front - s.kernel_t + s.stride_t) / s.stride_t);
      for (int o = back; o < s.out_frames; ++o) all_taps += s.kernel_t - back_tap(o);
    }
    all_taps *= first < rows ? h.taps * w.taps : 0;  // phases are of unequal size
  }

  LTX_DEVICE int frame_rows() const { return s.batch * h.count * w.count; }
  // Of frame number i of the phase.
  LTX_DEVICE int ends_of(int i) const {
    const int frame = t.residue + i * s.stride_t;
    return (frame == 0 ? kFirst : 0) | (frame == s.frames - 1 ? kLast : 0);
  }
  // The first tap of an output frame that falls behind the last frame.
  LTX_DEVICE int back_tap(int o) const { return max(0, s.frames + s.front - o * s.stride_t); }

  LTX_DEVICE int taps() const { return all_taps; }
  LTX_DEVICE Corner place(int i) const {  // clip, and indices in the phase
    const int line = (first + i) / w.count, frame = line / h.count, index = frame / s.batch;
    return {frame - index * s.batch, index, line - frame * h.count, first + i - line * w.count};
  }
  LTX_DEVICE int position(int i) const {
    if (first + i >= rows) return -1;
    const Corner at = place(i);
    const int frame = at.clip * s.frames + t.residue + at.t * s.stride_t;
    return (frame * s.height + h.residue + at.h * s.stride_h) * s.width + w.residue + at.w * s.stride_w;
  }
  LTX_DEVICE Row row(int i) const {
    if (first + i >= rows) return {0, 0, kNowhere, 0, 0};
    const Corner at = place(i);
    return {at.clip * s.out_frames, at.t + t.shift, at.h + h.shift, at.w + w.shift, ends_of(at.t)};
  }
  LTX_DEVICE int source(const Row& row, const Step& step) const {
    const int t = step.ends == 0 ? row.t + step.t : row.ends & step.ends ? step.t : kNowhere;
    const int h = row.h + step.h, w = row.w + step.w;
    const bool inside = static_cast<uint32_t>(t) < static_cast<uint32_t>(s.out_frames) &&
                        static_cast<uint32_t>(h) < static_cast<uint32_t>(s.out_height) &&
                        static_cast<uint32_t>(w) < static_cast<uint32_t>(s.out_width);
    return inside ? ((row.clip + t) * s.out_height + h) * s.out_width + w : -1;
  }

  // First the taps of the frames themselves, then the pairs that meet the first frame's padding, then the last's.
  struct Taps {
    int left, ends = 0;  // which padding
    int t, tap;          // a number of a tap in the phase; with ends an output frame and its tap
    int h = 0, w = 0;
    LTX_DEVICE explicit Taps(const InputGradient& pass) : left(pass.all_taps), t(pass.first_tap - 1), tap(0) {
      next_frame(pass);
    }
    LTX_DEVICE void next(const InputGradient& pass) {
      --left;
      if (++w < pass.w.taps) return;
      w = 0;
      if (++h < pass.h.taps) return;
      h = 0;
      next_frame(pass);
    }
    LTX_DEVICE void next_frame(const InputGradient& pass) {
      ++tap;
      if (ends == 0) {
        if (++t < pass.last_tap) {
          tap = pass.t.first_tap + t * pass.s.stride_t;
          return;
        }
        ends = kFirst;
        t = -1;
        tap = pass.s.kernel_t;
      }
      if (ends == kFirst) {
        if (tap < pass.s.kernel_t && t * pass.s.stride_t + tap < pass.s.front) return;
        tap = 0;
        if (++t < pass.front_end) return;
        ends = kLast;
        t = pass.back - 1;
        tap = pass.s.kernel_t;
      }
      if (tap < pass.s.kernel_t) return;
      ++t;
      tap = pass.back_tap(t);
    }
    LTX_DEVICE Step step(const InputGradient& pass, int channel, int w_channels) const {
      if (left <= 0) return {0, kNowhere, 0, 0, -1, 0};
      const int tap_h = pass.h.first_tap + h * pass.s.stride_h, tap_w = pass.w.first_tap + w * pass.s.stride_w;
      const int weight = ((tap * pass.s.kernel_h + tap_h) * pass.s.kernel_w + tap_w) * w_channels;
      return {ends ? t : -t, -h, -w, channel, weight, ends};
    }
  };
};

}  // namespace

void conv3d_backward_input(const Call& call) {
  const Operand dy = call[0], w = call[1], dx = call[2];
  if (!dx.size()) return;
  const Conv3d s = conv3d_geometry(call, dx, dy, w);
  dispatch(dx, [&](auto tag) {
    using T = decltype(tag);
    if (!dy.size()) return clear(context(call), dx.data<T>(), dx.size() * sizeof(T));
    Problem<T> p{};
    p.s = s;
    p.channels = padded_channels<T>(s.out);
    p.w_channels = padded_channels<T>(s.in);
    p.a = whole_rows(call, 0, dy.data<T>(), s.out_positions(), s.out, p.channels);
    p.w = whole_rows(call, 1, weights<T>(call, w), static_cast<int64_t>(s.out) * s.taps(), s.in, p.w_channels);
    p.y = dx.data<T>();
    p.columns = s.in;
    p.count = dx.size();
    p.whole = s.in % kVector<T> == 0 && aligned16(p.y);
    const auto most = [](int size, int stride) { return divide_up(size, stride); };
    const int64_t rows = most(s.frames, s.stride_t) * s.batch * most(s.height, s.stride_h) * most(s.width, s.stride_w);
    const int64_t taps = most(s.kernel_t, s.stride_t) * most(s.kernel_h, s.stride_h) * most(s.kernel_w, s.stride_w);
    convolve_tiled<InputGradient>(
        call, p, rows, phases(s.frames, s.stride_t) * phases(s.height, s.stride_h) * phases(s.width, s.stride_w), taps);
  });
}

}  // namespace ltx::cuda
