// 3-D convolution forward: a row is an output position, K goes through the taps as the weight's rows do.
#include "conv3d_tiles.cuh"

namespace ltx::cuda {
namespace {

struct Forward {
  static constexpr bool kTransposed = false;
  using Row = Corner;
  const Conv3d& s;
  int first;

  LTX_DEVICE Forward(const Conv3d& s, int tile, int, int tile_rows) : s(s), first(tile * tile_rows) {}
  LTX_DEVICE int taps() const { return s.taps(); }
  LTX_DEVICE int position(int i) const { return first + i < s.out_positions() ? first + i : -1; }
  LTX_DEVICE Row row(int i) const {
    const int p = position(i);
    return p < 0 ? Row{0, 0, kNowhere, 0} : corner(s, p);
  }
  LTX_DEVICE int source(const Row& row, const Step& step) const {
    return input_position(s, row, step.t, step.h, step.w);
  }

  struct Taps {
    int t = 0, h = 0, w = 0, index = 0;
    LTX_DEVICE explicit Taps(const Forward&) {}
    LTX_DEVICE void next(const Forward& pass) {
      ++index;
      if (++w < pass.s.kernel_w) return;
      w = 0;
      if (++h < pass.s.kernel_h) return;
      h = 0;
      ++t;
    }
    LTX_DEVICE Step step(const Forward& pass, int channel, int w_channels) const {
      if (t >= pass.s.kernel_t) return {0, kNowhere, 0, 0, -1, 0};
      return {t, h, w, channel, index * w_channels + channel, 0};
    }
  };
};

}  // namespace

void conv3d(const Call& call) {
  const Operand x = call[0], w = call[1], bias = call[2], residual = call[3], y = call[4];
  if (!y.size()) return;
  const Conv3d s = conv3d_geometry(call, x, y, w);
  dispatch(x, [&](auto tag) {
    using T = decltype(tag);
    Problem<T> p{};
    p.s = s;
    p.channels = p.w_channels = padded_channels<T>(s.in);
    p.a = whole_rows(call, 0, x.data<T>(), s.positions(), s.in, p.channels);
    p.w = whole_rows(call, 1, weights<T>(call, w), static_cast<int64_t>(s.out) * s.taps(), s.in, p.channels);
    p.bias = data<float>(bias);
    p.residual = data<T>(residual);
    p.y = y.data<T>();
    p.columns = s.out;
    p.count = y.size();
    p.whole = s.out % kVector<T> == 0 && aligned16(p.bias) && aligned16(p.residual) && aligned16(p.y);
    convolve_tiled<Forward>(call, p, s.out_positions(), 1, s.taps());
  });
}

}  // namespace ltx::cuda
