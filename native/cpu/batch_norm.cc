// Batch norm: statistics of every channel over all rows, n = (x - mean) rstd, y = n weight + bias.
#include <cmath>

#include "blocks.h"
#include "columns.h"

namespace ltx::cpu {
namespace {

// Calls body(offset, channel, n) for the elements of rows begin .. end: n of them from `offset` on, the first of which
// is of `channel`.
template <class Body>
void for_pieces(int64_t begin, int64_t end, int64_t columns, Body&& body) {
  for (int64_t channel = 0; channel < columns; channel += kBlock) {
    const int64_t n = std::min(kBlock, columns - channel);
    for (int64_t r = begin; r < end; ++r) body(r * columns + channel, channel, n);
  }
}

template <class Body>
void parallel_pieces(int64_t rows, int64_t columns, Body&& body) {
  parallel(rows, static_cast<double>(columns) * 0.5 + 5,
           [&](int64_t begin, int64_t end) { for_pieces(begin, end, columns, body); });
}

// Mean and biased variance of every channel into (C) each. Deviations are taken from a first mean, and what its
// rounding left over is put back: their sum would be zero with the exact mean.
void batch_stats(Operand x, float* mean, float* variance) {
  const int64_t rows = x.rows(), columns = x.columns();
  const double count = static_cast<double>(rows);
  sum_columns(
      rows, rows, columns, columns, 0.3, false, nullptr,
      [&](int64_t begin, int64_t end, float* sums) {
        float buffer[kBlock];
        for_pieces(begin, end, columns, [&](int64_t offset, int64_t channel, int64_t n) {
          const float* in = load(x, offset, n, buffer);
          float* sum = sums + channel;
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) sum[j] += in[j];
        });
      },
      [&](int64_t, const float* sums, double*) {
        for (int64_t c = 0; c < columns; ++c) mean[c] = static_cast<float>(sums[c] / count);
      });
  sum_columns(
      rows, rows, columns, 2 * columns, 0.4, false, nullptr,
      [&](int64_t begin, int64_t end, float* sums) {
        float buffer[kBlock];
        for_pieces(begin, end, columns, [&](int64_t offset, int64_t channel, int64_t n) {
          const float *in = load(x, offset, n, buffer), *center = mean + channel;
          float *sum = sums + channel, *squares = sum + columns;
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) {
            const float deviation = in[j] - center[j];
            sum[j] += deviation;
            squares[j] += deviation * deviation;
          }
        });
      },
      [&](int64_t, const float* sums, double*) {
        for (int64_t c = 0; c < columns; ++c) {
          const double rest = sums[c] / count;
          mean[c] = static_cast<float>(mean[c] + rest);
          const double square = sums[columns + c] / count - rest * rest;
          variance[c] = static_cast<float>(square < 0 ? 0.0 : square);  // lets a NaN through
        }
      });
}

}  // namespace

void batch_norm(const Call& call) {
  const Operand x = call[0], weight = call[1], bias = call[2], y = call[3], running_mean = call[5],
                running_var = call[6];
  const int64_t rows = x.rows(), columns = x.columns();
  const double eps = call.scalar(0), momentum = call.scalar(1);
  const bool training = call.integer(2) != 0;
  if (!rows || !columns) return zero(call[4]);
  float *mean = call[4].data<float>(), *rstd = mean + columns;
  float *kept_mean = running_mean.data<float>(), *kept_var = running_var.data<float>();
  if (training) {
    batch_stats(x, mean, rstd);
    const double unbiased = static_cast<double>(rows) / static_cast<double>(rows - 1);
    for (int64_t c = 0; c < columns; ++c) {
      kept_mean[c] = static_cast<float>(kept_mean[c] + momentum * (mean[c] - static_cast<double>(kept_mean[c])));
      kept_var[c] = static_cast<float>(kept_var[c] + momentum * (rstd[c] * unbiased - kept_var[c]));
    }
  } else {
    std::copy_n(kept_mean, columns, mean);
    std::copy_n(kept_var, columns, rstd);
  }
  float* factor = scratch<float>(0, 2 * columns);
  float* shift = factor + columns;
  for (int64_t c = 0; c < columns; ++c) {
    rstd[c] = static_cast<float>(1.0 / std::sqrt(rstd[c] + eps));
    factor[c] = weight ? rstd[c] * weight.data<float>()[c] : rstd[c];
    shift[c] = bias ? bias.data<float>()[c] : 0.0f;
  }
  parallel_pieces(rows, columns, [&](int64_t offset, int64_t channel, int64_t n) {
    float bx[kBlock], by[kBlock];
    const float *in = load(x, offset, n, bx), *center = mean + channel, *a = factor + channel, *b = shift + channel;
    float* out = target(y, offset, by);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) out[j] = (in[j] - center[j]) * a[j] + b[j];
    store(y, offset, n, out);
  });
}

// With S0 = sum dy, S1 = sum dy n over N rows: dbias = S0, dweight = S1, dx = weight rstd (dy - S0 / N - n S1 / N), the
// last two terms only where the statistics are the batch's own.
void batch_norm_backward(const Call& call) {
  const Operand x = call[0], weight = call[1], stats = call[2], dy = call[3], dx = call[4], dweight = call[5],
                dbias = call[6];
  const int64_t rows = x.rows(), columns = x.columns();
  const bool training = call.integer(0) != 0;
  zero(dweight);
  zero(dbias);
  if (!rows || !columns) return;
  const float *mean = stats.data<float>(), *rstd = mean + columns;
  float* factor = scratch<float>(0, 3 * columns);
  float *k0 = factor + columns, *k1 = k0 + columns;  // of dx = factor dy - k0 - (x - mean) k1
  for (int64_t c = 0; c < columns; ++c) factor[c] = weight ? rstd[c] * weight.data<float>()[c] : rstd[c];
  std::fill_n(k0, 2 * columns, 0.0f);
  if (training || dweight || dbias) {
    sum_columns(
        rows, rows, columns, 2 * columns, 0.5, false, nullptr,
        [&](int64_t begin, int64_t end, float* sums) {
          float bx[kBlock], bd[kBlock];
          for_pieces(begin, end, columns, [&](int64_t offset, int64_t channel, int64_t n) {
            const float *in = load(x, offset, n, bx), *d = load(dy, offset, n, bd), *center = mean + channel;
            float *s0 = sums + channel, *s1 = s0 + columns;
#pragma omp simd
            for (int64_t j = 0; j < n; ++j) {
              s0[j] += d[j];
              s1[j] += d[j] * (in[j] - center[j]);
            }
          });
        },
        [&](int64_t, const float* sums, double*) {
          const float share = 1.0f / static_cast<float>(rows);
          for (int64_t c = 0; c < columns; ++c) {
            const float s0 = sums[c], s1 = sums[columns + c] * rstd[c];
            if (dbias) dbias.data<float>()[c] = s0;
            if (dweight) dweight.data<float>()[c] = s1;
            if (!training) continue;
            k0[c] = factor[c] * s0 * share;
            k1[c] = factor[c] * rstd[c] * s1 * share;
          }
        });
  }
  if (!dx) return;
  parallel_pieces(rows, columns, [&](int64_t offset, int64_t channel, int64_t n) {
    float bx[kBlock], bd[kBlock], bdx[kBlock];
    const float *in = load(x, offset, n, bx), *d = load(dy, offset, n, bd), *center = mean + channel;
    const float *a = factor + channel, *b0 = k0 + channel, *b1 = k1 + channel;
    float* out = target(dx, offset, bdx);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) out[j] = a[j] * d[j] - b0[j] - (in[j] - center[j]) * b1[j];
    store(dx, offset, n, out);
  });
}

}  // namespace ltx::cpu
