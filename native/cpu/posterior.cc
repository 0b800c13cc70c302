// The diagonal Gaussian posterior: moments (B, ..., 2C) hold C means, then C log-variances a position. The latter are
// clamped, and no gradient passes outside the clamp.
#include "blocks.h"

namespace ltx::cpu {
namespace {

constexpr float kLowest = -30.0f, kHighest = 20.0f;
constexpr int64_t kUnitRows = 64;  // rows of a sample whose sums are one partial result

LTX_INLINE float clamped(float logvar) { return at_most(at_least(logvar, kLowest), kHighest); }
LTX_INLINE float inside(float logvar) { return logvar >= kLowest && logvar <= kHighest ? 1.0f : 0.0f; }

// Runs body(row, line) over rows on all threads; line has room for three rows of `columns`.
template <class Body>
void for_rows(int64_t rows, int64_t columns, Body&& body) {
  const int64_t room = 3 * columns + 16;
  float* lines = scratch<float>(0, omp_get_max_threads() * room);
  parallel(rows, 1.0 * columns, [&](int64_t begin, int64_t end) {
    float* line = lines + omp_get_thread_num() * room;
    for (int64_t row = begin; row < end; ++row) body(row, line);
  });
}

// y (B) f32 = scale * sum of term(row) over the rows of each sample of x, in an order that depends on the shape alone.
template <class Term>
void sum_samples(Operand x, Operand y, double scale, Term&& term) {
  const int64_t batch = x.dim(0), rows = batch ? x.rows() / batch : 0, columns = x.columns();
  const int64_t units = (rows + kUnitRows - 1) / kUnitRows;
  double* partials = scratch<double>(1, batch * units + 1);
  for_rows(batch * units, columns, [&](int64_t unit, float* line) {
    const int64_t first = unit % units * kUnitRows, last = std::min(first + kUnitRows, rows);
    double sum = 0;
    for (int64_t row = first; row < last; ++row)
      sum += term(load(x, (unit / units * rows + row) * columns, columns, line));
    partials[unit] = sum;
  });
  for (int64_t b = 0; b < batch; ++b) {
    double sum = 0;
    for (int64_t unit = 0; unit < units; ++unit) sum += partials[b * units + unit];
    y.data<float>()[b] = static_cast<float>(sum * scale);
  }
}

// dmoments from a value a sample: body(moments row, value, dmoments row).
template <class Body>
void spread_samples(Operand moments, Operand dy, Operand dmoments, Body&& body) {
  const int64_t rows = moments.rows(), columns = moments.columns(), per_sample = rows ? rows / moments.dim(0) : 1;
  for_rows(rows, columns, [&](int64_t row, float* line) {
    float* out = target(dmoments, row * columns, line + columns);
    body(load(moments, row * columns, columns, line), dy.data<float>()[row / per_sample], out);
    store(dmoments, row * columns, columns, out);
  });
}

double logvar_count(Operand moments) {
  const int64_t batch = moments.dim(0);
  return batch ? static_cast<double>(std::max<int64_t>(moments.size() / batch / 2, 1)) : 1.0;
}

}  // namespace

void expand_moments(const Call& call) {
  const int64_t in = call[0].columns(), means = in - 1, out = call[1].columns();
  for_rows(call[1].rows(), out, [&](int64_t row, float* line) {
    const float* x = load(call[0], row * in, in, line);
    float* y = target(call[1], row * out, line + in);
    std::copy(x, x + means, y);
    std::fill(y + means, y + out, x[means]);
    store(call[1], row * out, out, y);
  });
}

void expand_moments_backward(const Call& call) {
  const int64_t in = call[1].columns(), means = in - 1, out = call[0].columns();
  for_rows(call[0].rows(), out, [&](int64_t row, float* line) {
    const float* dy = load(call[0], row * out, out, line);
    float* dx = target(call[1], row * in, line + out);
    std::copy(dy, dy + means, dx);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = means; c < out; ++c) sum += dy[c];
    dx[means] = sum;
    store(call[1], row * in, in, dx);
  });
}

void posterior_sample(const Call& call) {
  const int64_t c2 = call[0].columns(), n = c2 / 2;
  for_rows(call[0].rows(), c2, [&](int64_t row, float* line) {
    const float *mean = load(call[0], row * c2, c2, line), *noise = load(call[1], row * n, n, line + c2);
    float* z = target(call[2], row * n, line + c2 + n);
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) z[c] = mean[c] + vexp(0.5f * clamped(mean[n + c])) * noise[c];
    store(call[2], row * n, n, z);
  });
}

void posterior_sample_backward(const Call& call) {
  const int64_t c2 = call[0].columns(), n = c2 / 2;
  for_rows(call[0].rows(), c2, [&](int64_t row, float* line) {
    const float *mean = load(call[0], row * c2, c2, line), *noise = load(call[1], row * n, n, line + c2);
    const float* dz = load(call[2], row * n, n, line + c2 + n);
    float* dmean = target(call[3], row * c2, line + 2 * c2);
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
      const float logvar = mean[n + c];
      dmean[c] = dz[c];
      dmean[n + c] = inside(logvar) * 0.5f * vexp(0.5f * clamped(logvar)) * noise[c] * dz[c];
    }
    store(call[3], row * c2, c2, dmean);
  });
}

void posterior_kl(const Call& call) {
  const int64_t n = call[0].columns() / 2;
  sum_samples(call[0], call[1], 0.5, [n](const float* mean) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < n; ++c) {
      const float logvar = clamped(mean[n + c]);
      sum += mean[c] * mean[c] + (vexp(logvar) - 1.0f - logvar);
    }
    return sum;
  });
}

void posterior_kl_backward(const Call& call) {
  const int64_t n = call[0].columns() / 2;
  spread_samples(call[0], call[1], call[2], [n](const float* mean, float dkl, float* dmean) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
      const float logvar = mean[n + c];
      dmean[c] = dkl * mean[c];
      dmean[n + c] = inside(logvar) * 0.5f * dkl * (vexp(clamped(logvar)) - 1.0f);
    }
  });
}

void posterior_logvar(const Call& call) {
  const int64_t n = call[0].columns() / 2;
  sum_samples(call[0], call[1], 1.0 / logvar_count(call[0]), [n](const float* mean) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < n; ++c) sum += clamped(mean[n + c]);
    return sum;
  });
}

void posterior_logvar_backward(const Call& call) {
  const int64_t n = call[0].columns() / 2;
  const float share = static_cast<float>(1.0 / logvar_count(call[0]));
  spread_samples(call[0], call[1], call[2], [n, share](const float* mean, float dy, float* dmean) {
    std::fill(dmean, dmean + n, 0.0f);
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) dmean[n + c] = inside(mean[n + c]) * share * dy;
  });
}

}  // namespace ltx::cpu
