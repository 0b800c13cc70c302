// Gated residual addition and the noise plane of the decoder.
#include "blocks.h"
#include "columns.h"

namespace ltx::cpu {
namespace {

// Calls body(row, column, n) for pieces of rows begin .. end of at most kBlock elements.
template <class Body>
void for_row_pieces(int64_t begin, int64_t end, int64_t columns, Body&& body) {
  for (int64_t c = 0; c < columns; c += kBlock) {
    for (int64_t r = begin; r < end; ++r) body(r, c, std::min(kBlock, columns - c));
  }
}

}  // namespace

void gated_add(const Call& call) {
  const Operand x = call[0], h = call[1], ada = call[2], y = call[3];
  const int64_t columns = y.columns(), rows = y.rows(), gate_row = call.integer(0);
  if (!rows || !columns) return;
  const int64_t run = rows / ada.dim(0);
  parallel(rows, static_cast<double>(columns) * 0.4 + 5, [&](int64_t begin, int64_t end) {
    float bx[kBlock], bh[kBlock], bg[kBlock], by[kBlock];
    for (int64_t r = begin; r < end;) {
      const int64_t stop = std::min(end, (r / run + 1) * run);
      const int64_t gate_offset = (r / run * ada.dim(1) + gate_row) * columns;
      const float* gate = nullptr;
      int64_t loaded = -1;
      for_row_pieces(r, stop, columns, [&](int64_t row, int64_t c, int64_t n) {
        if (loaded != c) gate = load(ada, gate_offset + c, n, bg), loaded = c;
        const int64_t i = row * columns + c;
        const float *px = load(x, i, n, bx), *ph = load(h, i, n, bh);
        float* out = target(y, i, by);
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) out[j] = px[j] + ph[j] * gate[j];
        store(y, i, n, out);
      });
      r = stop;
    }
  });
}

void gated_add_backward(const Call& call) {
  const Operand h = call[0], ada = call[1], dy = call[2], dh = call[3], dada = call[4];
  const int64_t columns = dy.columns(), rows = dy.rows(), gate_row = call.integer(0);
  zero(dada);
  if (!rows || !columns) return;
  const int64_t run = rows / ada.dim(0);
  sum_columns(
      rows, run, columns, columns, 0.6, false, nullptr,
      [&](int64_t begin, int64_t end, float* sums) {
        float bh[kBlock], bg[kBlock], bd[kBlock], bo[kBlock];
        const int64_t gate_offset = (begin / run * ada.dim(1) + gate_row) * columns;
        const float* gate = nullptr;
        int64_t loaded = -1;
        for_row_pieces(begin, end, columns, [&](int64_t row, int64_t c, int64_t n) {
          if (loaded != c) gate = load(ada, gate_offset + c, n, bg), loaded = c;
          const int64_t i = row * columns + c;
          const float *ph = load(h, i, n, bh), *d = load(dy, i, n, bd);
          float *out = target(dh, i, bo), *sum = sums + c;
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) {
            sum[j] += d[j] * ph[j];
            out[j] = d[j] * gate[j];
          }
          store(dh, i, n, out);
        });
      },
      [&](int64_t g, const float* sums, double*) {
        if (dada) store(dada, (g * dada.dim(1) + gate_row) * columns, columns, sums);
      });
}

void add_plane(const Call& call) {
  const Operand x = call[0], plane = call[1], scale = call[2], y = call[3];
  const int64_t columns = y.columns(), rows = y.rows(), pixels = plane.size();
  if (!rows || !columns) return;
  parallel(rows, static_cast<double>(columns) * 0.3 + 5, [&](int64_t begin, int64_t end) {
    float bx[kBlock], bs[kBlock], by[kBlock], bp[1];
    const float* factors = nullptr;
    int64_t loaded = -1;
    for_row_pieces(begin, end, columns, [&](int64_t row, int64_t c, int64_t n) {
      if (loaded != c) factors = load(scale, c, n, bs), loaded = c;
      const float noise = load(plane, row % pixels, 1, bp)[0];
      const int64_t i = row * columns + c;
      const float* px = load(x, i, n, bx);
      float* out = target(y, i, by);
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) out[j] = px[j] + noise * factors[j];
      store(y, i, n, out);
    });
  });
}

void add_plane_backward(const Call& call) {
  const Operand plane = call[0], dy = call[1], dscale = call[2];
  const int64_t columns = dy.columns(), rows = dy.rows(), pixels = plane.size();
  zero(dscale);
  sum_columns(
      rows, rows, columns, columns, 0.3, false, nullptr,
      [&](int64_t begin, int64_t end, float* sums) {
        float bd[kBlock], bp[1];
        for_row_pieces(begin, end, columns, [&](int64_t row, int64_t c, int64_t n) {
          const float noise = load(plane, row % pixels, 1, bp)[0];
          const float* d = load(dy, row * columns + c, n, bd);
          float* sum = sums + c;
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) sum[j] += noise * d[j];
        });
      },
      [&](int64_t, const float* sums, double*) { store(dscale, 0, columns, sums); });
}

}  // namespace ltx::cpu
