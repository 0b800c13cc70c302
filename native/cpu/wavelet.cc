// The 3D Haar transform and the L1 loss on it. Rows of a 2 x 2 window in time and height are combined first, whole
// blocks of width at a time, then neighbours in width. The transform is symmetric: its adjoint is the same butterflies
// backwards. Coefficients carry a factor 1/sqrt(2) an axis, applied once at the end.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "common.h"

namespace ltx::cpu {
namespace {

constexpr float kScale = 0.353553391f;  // 2^(-3/2)
constexpr int64_t kBlockFloats = 2048;  // of each of the four rows, so that they stay in L1
constexpr int64_t kUnitRows = 8;        // row pairs whose losses are summed into one partial result

// (B, F, H, W, C) and the halved extents.
struct Grid {
  int64_t b, f, h, w, c;
  int64_t f2 = (f + 1) / 2, h2 = (h + 1) / 2, w2 = (w + 1) / 2;
  int64_t block = std::max<int64_t>(1, kBlockFloats / 2 / std::max<int64_t>(c, 1));  // pairs of pixels in a block
  int64_t block_floats() const { return 2 * std::min(block, w2) * c; }
  explicit Grid(Operand x) : b(x.dim(0)), f(x.dim(1)), h(x.dim(2)), w(x.dim(3)), c(x.dim(4)) {}
};

// `pairs` pairs of pixels from w = 2 first on, of the four rows of window (b, f2, h2).
struct Window {
  const Grid& grid;
  int64_t b, f2, h2, first, pairs;
  int64_t floats() const { return 2 * pairs * grid.c; }
  int64_t stored() const { return (std::min(2 * (first + pairs), grid.w) - 2 * first) * grid.c; }
  bool exists(int k) const { return 2 * f2 + k / 2 < grid.f && 2 * h2 + k % 2 < grid.h; }
  int64_t offset(int k) const {
    return (((b * grid.f + 2 * f2 + k / 2) * grid.h + 2 * h2 + k % 2) * grid.w + 2 * first) * grid.c;
  }
  int64_t band_offset(int band) const {
    return ((((b * 8 + band) * grid.f2 + f2) * grid.h2 + h2) * grid.w2 + first) * grid.c;
  }
};

// Calls body(window) for every block of row pair `index` of (B, f2, h2).
template <class Body>
void for_blocks(const Grid& grid, int64_t index, Body&& body) {
  const int64_t h2 = index % grid.h2, f2 = index / grid.h2 % grid.f2, b = index / grid.h2 / grid.f2;
  for (int64_t first = 0; first < grid.w2; first += grid.block)
    body(Window{grid, b, f2, h2, first, std::min(grid.block, grid.w2 - first)});
}

// Sums and differences over time and height of four rows that lie `n` apart, in place: row 2 highF + highH.
void butterfly(float* rows, int64_t n) {
  float *r0 = rows, *r1 = rows + n, *r2 = rows + 2 * n, *r3 = rows + 3 * n;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float s0 = r0[i] + r1[i], d0 = r0[i] - r1[i], s1 = r2[i] + r3[i], d1 = r2[i] - r3[i];
    r0[i] = s0 + s1;
    r1[i] = d0 + d1;
    r2[i] = s0 - s1;
    r3[i] = d0 - d1;
  }
}

// Calls body(even, odd, pair, channel) with the indices of the two neighbours and of the pair. Few channels are a
// constant of the loop, which then runs along the width.
template <class Body>
void for_pairs(int64_t pairs, int64_t channels, Body&& body) {
  if (channels == 1) {
#pragma omp simd
    for (int64_t i = 0; i < pairs; ++i) body(2 * i, 2 * i + 1, i, int64_t{0});
  } else if (channels == 3) {
    for (int64_t i = 0; i < pairs; ++i)
      for (int64_t c = 0; c < 3; ++c) body(6 * i + c, 6 * i + 3 + c, 3 * i + c, c);
  } else {
    for (int64_t i = 0; i < pairs; ++i) {
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c)
        body(2 * i * channels + c, (2 * i + 1) * channels + c, i * channels + c, c);
    }
  }
}

// Reads the window's rows, or their differences where there is a b, with zeros beyond the edges.
template <class A, class B>
void load(const Window& window, const A* a, const B* b, float* rows) {
  const int64_t n = window.floats(), stored = window.stored();
  for (int k = 0; k < 4; ++k) {
    float* row = rows + k * n;
    if (!window.exists(k)) {
      std::fill(row, row + n, 0.0f);
      continue;
    }
    const A* from = a + window.offset(k);
    if (b) {
      const B* other = b + window.offset(k);
#pragma omp simd
      for (int64_t i = 0; i < stored; ++i) row[i] = static_cast<float>(from[i]) - static_cast<float>(other[i]);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < stored; ++i) row[i] = from[i];
    }
    std::fill(row + stored, row + n, 0.0f);
  }
}

// Writes the rows inside the edges, times factor.
template <class T>
void store(const Window& window, const float* rows, float factor, T* x) {
  for (int k = 0; k < 4; ++k) {
    if (!window.exists(k)) continue;
    const float* row = rows + k * window.floats();
    T* to = x + window.offset(k);
    const int64_t stored = window.stored();
#pragma omp simd
    for (int64_t i = 0; i < stored; ++i) to[i] = row[i] * factor;
  }
}

float sign(float x) { return static_cast<float>((x > 0) - (x < 0)); }

// Runs body(index, rows) over the row pairs of the grid on all threads.
template <class Body>
void for_row_pairs(const Grid& grid, Body&& body) {
  const int64_t room = 4 * grid.block_floats() + 16;
  float* lines = scratch<float>(0, omp_get_max_threads() * room);
  parallel(grid.b * grid.f2 * grid.h2, 2.0 * grid.w2 * grid.c, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index)
      for_blocks(grid, index, [&](const Window& window) { body(window, lines + omp_get_thread_num() * room); });
  });
}

}  // namespace

void haar(const Call& call) {
  const Grid grid(call[0]);
  dispatch(call[0], call[1], [&](auto in, auto out) {
    using X = decltype(in);
    using Y = decltype(out);
    for_row_pairs(grid, [&](const Window& window, float* rows) {
      load<X, X>(window, call[0].data<X>(), nullptr, rows);
      butterfly(rows, window.floats());
      for (int k = 0; k < 4; ++k) {
        const float* row = rows + k * window.floats();
        Y* low = call[1].data<Y>() + window.band_offset(2 * k);
        Y* high = call[1].data<Y>() + window.band_offset(2 * k + 1);
        for_pairs(window.pairs, grid.c, [=](int64_t even, int64_t odd, int64_t pair, int64_t) {
          low[pair] = (row[even] + row[odd]) * kScale;
          high[pair] = (row[even] - row[odd]) * kScale;
        });
      }
    });
  });
}

void haar_backward(const Call& call) {
  const Grid grid(call[1]);
  dispatch(call[0], call[1], [&](auto in, auto out) {
    using Y = decltype(in);
    using X = decltype(out);
    for_row_pairs(grid, [&](const Window& window, float* rows) {
      for (int k = 0; k < 4; ++k) {
        float* row = rows + k * window.floats();
        const Y* low = call[0].data<Y>() + window.band_offset(2 * k);
        const Y* high = call[0].data<Y>() + window.band_offset(2 * k + 1);
        for_pairs(window.pairs, grid.c, [=](int64_t even, int64_t odd, int64_t pair, int64_t) {
          const float l = low[pair], h = high[pair];
          row[even] = l + h;
          row[odd] = l - h;
        });
      }
      butterfly(rows, window.floats());
      store(window, rows, kScale, call[1].data<X>());
    });
  });
}

// The loss needs no coefficients: |e + o| + |e - o| = 2 max(|e|, |o|).
void haar_l1(const Call& call) {
  const Grid grid(call[0]);
  const int64_t pairs = grid.f2 * grid.h2, units = (pairs + kUnitRows - 1) / kUnitRows;
  const int64_t room = 4 * grid.block_floats() + 16;
  float* lines = scratch<float>(0, omp_get_max_threads() * room);
  float* partials = scratch<float>(1, grid.b * units * grid.c + 1);
  dispatch(call[0], call[1], [&](auto ta, auto tb) {
    using A = decltype(ta);
    using B = decltype(tb);
    parallel(grid.b * units, 2.0 * kUnitRows * grid.w2 * grid.c, [&](int64_t begin, int64_t end) {
      float* rows = lines + omp_get_thread_num() * room;
      for (int64_t unit = begin; unit < end; ++unit) {
        float* sum = partials + unit * grid.c;
        std::fill(sum, sum + grid.c, 0.0f);
        const int64_t start = unit % units * kUnitRows, base = unit / units * pairs;
        for (int64_t index = start; index < std::min(start + kUnitRows, pairs); ++index) {
          for_blocks(grid, base + index, [&](const Window& window) {
            load(window, call[0].data<A>(), call[1].data<B>(), rows);
            butterfly(rows, window.floats());
            if (grid.c == 1) {
              float total = 0;
              const float* row = rows;  // the four rows are one run of pairs
#pragma omp simd reduction(+ : total)
              for (int64_t i = 0; i < 4 * window.pairs; ++i) {
                const float even = std::fabs(row[2 * i]), odd = std::fabs(row[2 * i + 1]);
                total += even > odd ? even : odd;
              }
              sum[0] += total;
            } else {
              for_pairs(4 * window.pairs, grid.c, [=](int64_t e, int64_t o, int64_t, int64_t c) {
                const float even = std::fabs(rows[e]), odd = std::fabs(rows[o]);
                sum[c] += even > odd ? even : odd;
              });
            }
          });
        }
      }
    });
  });
  const double scale = 2.0 * kScale / (8.0 * std::max<int64_t>(pairs * grid.w2, 1));
  float* y = call[2].data<float>();
  for (int64_t b = 0; b < grid.b; ++b) {
    for (int64_t c = 0; c < grid.c; ++c) {
      double total = 0;
      for (int64_t unit = 0; unit < units; ++unit) total += partials[(b * units + unit) * grid.c + c];
      y[b * grid.c + c] = static_cast<float>(total * scale);
    }
  }
}

void haar_l1_backward(const Call& call) {
  const Grid grid(call[0]);
  const float* dy = call[2].data<float>();
  const float factor = kScale / (8.0f * static_cast<float>(std::max<int64_t>(grid.f2 * grid.h2 * grid.w2, 1)));
  dispatch(call[0], call[1], [&](auto ta, auto tb) {
    using A = decltype(ta);
    using B = decltype(tb);
    for_row_pairs(grid, [&](const Window& window, float* rows) {
      load(window, call[0].data<A>(), call[1].data<B>(), rows);
      butterfly(rows, window.floats());
      const float* weight = dy + window.b * grid.c;
      for_pairs(4 * window.pairs, grid.c, [=](int64_t even, int64_t odd, int64_t, int64_t c) {
        const float low = sign(rows[even] + rows[odd]), high = sign(rows[even] - rows[odd]);
        rows[even] = (low + high) * weight[c];
        rows[odd] = (low - high) * weight[c];
      });
      butterfly(rows, window.floats());
      if (call[3].dtype() == LTX_F32) {
        store(window, rows, factor, call[3].data<float>());
      } else {
        store(window, rows, factor, call[3].data<bf16>());
      }
    });
  });
}

}  // namespace ltx::cpu
