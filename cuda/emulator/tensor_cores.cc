// ldmatrix and mma: the lanes of a warp meet, and the last to come does the work of all 32, by the fragment layouts
// that target.cuh describes.
#include "emulator.h"

namespace ltx::cuda {
namespace {

struct Matrices {
  uint32_t row[4];
  uint32_t (*result)[4];
};

uint16_t element(void** all, int matrix, int row, int column) {
  const uint32_t word = static_cast<const Matrices*>(all[8 * matrix + row])->row[column / 2];
  return static_cast<uint16_t>(column % 2 ? word >> 16 : word);
}

template <bool kTransposed>
void load_matrices(uint32_t (&r)[4], const void* row) {
  Matrices argument;
  argument.result = &r;
  emulator::read_row(row, argument.row);
  emulator::meet(~0u, kTransposed ? "ldmatrix_transposed" : "ldmatrix", &argument, [](void** all) {
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, c = 2 * (lane % 4);
      for (int m = 0; m < 4; ++m) {
        const uint32_t low = kTransposed ? element(all, m, c, g) : element(all, m, g, c);
        const uint32_t high = kTransposed ? element(all, m, c + 1, g) : element(all, m, g, c + 1);
        (*static_cast<const Matrices*>(all[lane])->result)[m] = low | high << 16;
      }
    }
  });
}

struct Product {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

float low(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
float high(uint32_t pair) { return std::bit_cast<float>(pair & 0xFFFF0000u); }

}  // namespace

void ldmatrix(uint32_t (&r)[4], const void* row) { load_matrices<false>(r, row); }
void ldmatrix_transposed(uint32_t (&r)[4], const void* row) { load_matrices<true>(r, row); }

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Product argument{d, a, {b0, b1}};
  emulator::meet(~0u, "mma_bf16", &argument, [](void** all) {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& own = *static_cast<const Product*>(all[lane]);
      const int g = lane / 4, c = 2 * (lane % 4);
      for (int i = 0; i < 4; ++i) {
        left[g + 8 * (i & 1)][c + 8 * (i >> 1)] = low(own.a[i]);
        left[g + 8 * (i & 1)][c + 8 * (i >> 1) + 1] = high(own.a[i]);
      }
      for (int i = 0; i < 2; ++i) {
        right[c + 8 * i][g] = low(own.b[i]);
        right[c + 8 * i + 1][g] = high(own.b[i]);
      }
    }
    float sums[16][8] = {};
    for (int m = 0; m < 16; ++m) {
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 8; ++n) sums[m][n] += left[m][k] * right[k][n];
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      float* d = static_cast<const Product*>(all[lane])->d;
      const int g = lane / 4, c = 2 * (lane % 4);
      for (int i = 0; i < 4; ++i) d[i] += sums[g + 8 * (i >> 1)][c + (i & 1)];
    }
  });
}

}  // namespace ltx::cuda
