// Max pooling, windows of 2 x 2 pixels side by side.
#include "blocks.h"

namespace ltx::cpu {
namespace {

struct Pool {
  int64_t images, height, width, channels;  // of x; y is (images, height / 2, width / 2, channels)

  explicit Pool(Operand x) : images(x.dim(0) * x.dim(1)), height(x.dim(2)), width(x.dim(3)), channels(x.dim(4)) {}
  double row_cost() const { return static_cast<double>(width * channels) * 0.5 + 5; }
  // Elements of x and y: the window's first pixel, the output pixel.
  int64_t window(int64_t image, int64_t row, int64_t column) const {
    return ((image * height + 2 * row) * width + 2 * column) * channels;
  }
  int64_t pixel(int64_t image, int64_t row, int64_t column) const {
    return ((image * (height / 2) + row) * (width / 2) + column) * channels;
  }
  int64_t corner(int i) const { return ((i >> 1) * width + (i & 1)) * channels; }
};

// The later value is taken where it is greater, or not a number.
LTX_INLINE bool replaces(float later, float best) { return later > best || later != later; }

}  // namespace

void max_pool2d(const Call& call) {
  const Operand x = call[0], y = call[1];
  if (!y.size()) return;
  const Pool p(x);
  const int64_t rows = p.height / 2, columns = p.width / 2;
  parallel(p.images * rows, p.row_cost(), [&](int64_t begin, int64_t end) {
    float buffers[4][kBlock], by[kBlock];
    for (int64_t line = begin; line < end; ++line) {
      const int64_t image = line / rows, row = line % rows;
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t from = p.window(image, row, column), to = p.pixel(image, row, column);
        for (int64_t c = 0; c < p.channels; c += kBlock) {
          const int64_t n = std::min(kBlock, p.channels - c);
          const float* in[4];
          for (int i = 0; i < 4; ++i) in[i] = load(x, from + p.corner(i) + c, n, buffers[i]);
          float* out = target(y, to + c, by);
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) {
            float best = in[0][j];
            for (int i = 1; i < 4; ++i) best = replaces(in[i][j], best) ? in[i][j] : best;
            out[j] = best;
          }
          store(y, to + c, n, out);
        }
      }
    }
  });
}

void max_pool2d_backward(const Call& call) {
  const Operand x = call[0], dy = call[1], dx = call[2];
  if (!dy.size()) return zero(dx);
  const Pool p(x);
  const int64_t rows = (p.height + 1) / 2, columns = (p.width + 1) / 2;  // an odd row and column are in no window
  parallel(p.images * rows, 1.5 * p.row_cost(), [&](int64_t begin, int64_t end) {
    float buffers[4][kBlock], bd[kBlock], outs[4][kBlock];
    const float zeros[kBlock] = {};
    for (int64_t line = begin; line < end; ++line) {
      const int64_t image = line / rows, row = line % rows;
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t from = p.window(image, row, column);
        const bool below = 2 * row + 1 < p.height, right = 2 * column + 1 < p.width;
        for (int64_t c = 0; c < p.channels; c += kBlock) {
          const int64_t n = std::min(kBlock, p.channels - c);
          if (!below || !right) {
            store(dx, from + c, n, zeros);
            if (right) store(dx, from + p.corner(1) + c, n, zeros);
            if (below) store(dx, from + p.corner(2) + c, n, zeros);
            continue;
          }
          const float* in[4];
          for (int i = 0; i < 4; ++i) in[i] = load(x, from + p.corner(i) + c, n, buffers[i]);
          const float* d = load(dy, p.pixel(image, row, column) + c, n, bd);
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) {
            float best = in[0][j];
            int winner = 0;
            for (int i = 1; i < 4; ++i) {
              const bool better = replaces(in[i][j], best);
              best = better ? in[i][j] : best;
              winner = better ? i : winner;
            }
            for (int i = 0; i < 4; ++i) outs[i][j] = winner == i ? d[j] : 0.0f;
          }
          for (int i = 0; i < 4; ++i) store(dx, from + p.corner(i) + c, n, outs[i]);
        }
      }
    }
  });
}

}  // namespace ltx::cpu
