// Matrix products of the sizes that attention needs: a few dozen rows and columns out of L1 and L2, float32, one
// thread. Left operands are read by broadcast through any two strides, right operands in rows of whole vectors.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

namespace ltx::cpu {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileVectors = 4;  // 6 x 4 sums + 4 columns + 1 broadcast of 32 registers
#else
constexpr int kLanes = 8;
constexpr int kTileVectors = 2;  // 6 x 2 sums + 2 columns + 1 broadcast of 16 registers
#endif
constexpr int kTileRows = 6;
constexpr int kTileColumns = kTileVectors * kLanes;

constexpr int64_t round_to_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

namespace gemm_detail {

typedef float Lanes __attribute__((vector_size(kLanes * 4)));

inline Lanes load_lanes(const float* p) {
  Lanes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store_lanes(float* p, Lanes v) { std::memcpy(p, &v, sizeof v); }

// c[r][j] (+)= sum over i of a[r * a_row + i * a_step] * b[i * b_row + j] for R rows and V vectors of columns.
template <int R, int V>
void tile(int64_t k, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_row, float* c,
          int64_t c_row, bool accumulate) {
  Lanes sum[R][V] = {};
  for (int64_t i = 0; i < k; ++i, a += a_step, b += b_row) {
    Lanes column[V];
    for (int v = 0; v < V; ++v) column[v] = load_lanes(b + v * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const float left = a[r * a_row];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += left * column[v];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* out = c + r * c_row + v * kLanes;
      store_lanes(out, accumulate ? load_lanes(out) + sum[r][v] : sum[r][v]);
    }
  }
}

using Tile = void (*)(int64_t, const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t, bool);

template <int V>
Tile tile_of(int64_t rows) {
  constexpr Tile kTiles[kTileRows] = {tile<1, V>, tile<2, V>, tile<3, V>, tile<4, V>, tile<5, V>, tile<6, V>};
  return kTiles[rows - 1];
}

inline Tile tile_for(int64_t rows, int64_t vectors) {
  if constexpr (kTileVectors == 4) {
    if (vectors == 4) return tile_of<4>(rows);
    if (vectors == 3) return tile_of<3>(rows);
  }
  return vectors == 2 ? tile_of<2>(rows) : tile_of<1>(rows);
}

}  // namespace gemm_detail

// c (m, n) (+)= a (m, k) b (k, n), n a multiple of kLanes. a is read at a[row * a_row + i * a_step].
inline void small_gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, int64_t a_step, const float* b,
                       int64_t b_row, float* c, int64_t c_row, bool accumulate) {
  const int64_t strips = (m + kTileRows - 1) / kTileRows;  // of nearly equal height: 16 rows are 6 + 5 + 5
  for (int64_t column = 0; column < n; column += kTileColumns) {
    const int64_t vectors = std::min<int64_t>(n - column, kTileColumns) / kLanes;
    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t row = strip * m / strips, rows = (strip + 1) * m / strips - row;
      gemm_detail::tile_for(rows, vectors)(k, a + row * a_row, a_row, a_step, b + column, b_row,
                                           c + row * c_row + column, c_row, accumulate);
    }
  }
}

}  // namespace ltx::cpu
