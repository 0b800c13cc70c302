// Normalisation, modulation and activation as one pass over the rows forward and one backward (group norm: two each).
//
//   n = (x - mean) rstd      u = n A + B      y = act(u)
//   A = weight (1 + scale)   B = bias (1 + scale) + shift
//
// Both gradients of a channel come from two sums over the rows of one ada group, S0 = sum du and S1 = sum du n:
// dshift = S0, dscale = weight S1 + bias S0, dweight += (1 + scale) S1, dbias += (1 + scale) S0.
#include <cmath>
#include <numeric>

#include "blocks.h"
#include "columns.h"
#include "unary.h"

namespace ltx::cpu {
namespace {

constexpr int64_t kBatch = 2048;       // elements that go through the steps of a row together
constexpr int64_t kStatBlock = 16384;  // elements whose group statistics are computed in one go

struct Plan {
  Operand x, weight, bias, ada;
  int norm, act;
  double eps;
  int64_t groups, shift_row, scale_row;
  int64_t rows, columns, samples;
  int64_t ada_run;  // rows that share a row pair of ada
  int64_t run;      // rows that share ada's row pair and, for group norm, the sample
  int64_t batch;    // rows at a time

  Plan(const Call& call, Operand x, Operand weight, Operand bias, Operand ada)
      : x(x), weight(weight), bias(bias), ada(ada) {
    norm = static_cast<int>(call.integer(0));
    act = static_cast<int>(call.integer(1));
    eps = call.scalar(2);
    groups = call.integer(3);
    shift_row = call.integer(4);
    scale_row = call.integer(5);
    rows = x.rows();
    columns = x.columns();
    samples = x.dims() > 1 ? x.dim(0) : 1;
    if (!rows || !columns) return;
    ada_run = ada ? rows / ada.dim(0) : rows;
    run = norm == kNormGroup ? std::gcd(ada_run, rows / samples) : ada_run;
    batch = std::max<int64_t>(1, kBatch / columns);
  }

  bool empty() const { return !rows || !columns; }
  double cost() const { return act == kUnaryNone ? 0.5 : 1.2; }

  // Per channel: scale + 1 of ada group g into `factor`.
  void factor(int64_t g, float* factor) const {
    if (!ada) {
      std::fill_n(factor, columns, 1.0f);
      return;
    }
    const float* scale = load(ada, (g * ada.dim(1) + scale_row) * columns, columns, factor);
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) factor[c] = 1.0f + scale[c];
  }
  void affine(int64_t g, float* a, float* b) const {
    factor(g, a);
    if (ada) {
      const float* shift = load(ada, (g * ada.dim(1) + shift_row) * columns, columns, b);
      if (shift != b) std::copy_n(shift, columns, b);
    } else {
      std::fill_n(b, columns, 0.0f);
    }
    if (bias) {
      const float* values = bias.data<float>();
#pragma omp simd
      for (int64_t c = 0; c < columns; ++c) b[c] = values[c] * a[c] + b[c];
    }
    if (weight) {
      const float* values = weight.data<float>();
#pragma omp simd
      for (int64_t c = 0; c < columns; ++c) a[c] *= values[c];
    }
  }
};

// A thread's work space. Channel vectors hold what changes with the run, batches what changes with every step.
struct Space {
  float *a, *b, *mean, *rstd, *k0, *k1;  // C each
  float *x, *dy, *n, *u, *out;           // batch * C each
  int64_t run = -1;

  static int64_t size(const Plan& p) { return 6 * padded(p.columns) + 5 * padded(p.batch * p.columns); }
  static int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }
  Space(const Plan& p, float* base) {
    float** const channels[] = {&a, &b, &mean, &rstd, &k0, &k1};
    float** const batches[] = {&x, &dy, &n, &u, &out};
    for (float** part : channels) *part = base, base += padded(p.columns);
    for (float** part : batches) *part = base, base += padded(p.batch * p.columns);
  }
};

float* spaces(const Plan& p) { return scratch<float>(0, omp_get_max_threads() * Space::size(p)); }

// Calls body(begin, end) for pieces of [begin, end) of at most `batch` rows that don't cross a run.
template <class Body>
void for_batches(const Plan& p, int64_t begin, int64_t end, Body&& body) {
  while (begin < end) {
    const int64_t stop = std::min({end, begin + p.batch, (begin / p.run + 1) * p.run});
    body(begin, stop);
    begin = stop;
  }
}

// Mean and 1 / std of one row; the mean stays 0 for the norms without centring. Two passes, so nothing cancels.
void row_stats(const Plan& p, const float* x, float& mean, float& rstd) {
  const int64_t columns = p.columns;
  mean = 0;
  if (p.norm == kNormLayer) mean = sum_of(columns, [=](int64_t c) { return x[c]; }) / static_cast<float>(columns);
  const float center = mean;
  const float sum = sum_of(columns, [=](int64_t c) { return (x[c] - center) * (x[c] - center); });
  rstd = static_cast<float>(1.0 / std::sqrt(static_cast<double>(sum) / static_cast<double>(columns) + p.eps));
}

// Reads what the forward pass kept.
void kept_stats(const Plan& p, const float* stats, int64_t row, float& mean, float& rstd) {
  mean = p.norm == kNormLayer ? stats[2 * row] : 0.0f;
  rstd = p.norm == kNormNone ? 1.0f : p.norm == kNormLayer ? stats[2 * row + 1] : stats[row];
}

// Mean and sum of squared deviations of `count` values; add() is Chan's update.
struct Moments {
  double count = 0, mean = 0, squares = 0;
  void add(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count, delta = other.mean - mean;
    mean += delta * other.count / total;
    squares += other.squares + delta * delta * count * other.count / total;
    count = total;
  }
};

// stats (samples, groups, 2) = mean, 1 / std.
void group_stats(const Plan& p, float* stats) {
  const int64_t columns = p.columns, groups = p.groups, width = columns / groups, spatial = p.rows / p.samples;
  const int64_t step = std::clamp<int64_t>(kStatBlock / columns, 1, 1024), blocks = (spatial + step - 1) / step;
  Moments* partial = scratch<Moments>(1, p.samples * blocks * groups);
  // Per thread: converted rows, two sums for each channel, means of the channels' groups.
  const int64_t stride = Space::padded(step * columns) + 3 * Space::padded(columns);
  float* space = scratch<float>(0, omp_get_max_threads() * stride);
  parallel(p.samples * blocks, static_cast<double>(step * columns) * 0.4, [&](int64_t begin, int64_t end) {
    float* buffer = space + omp_get_thread_num() * stride;
    float* sums = buffer + Space::padded(step * columns);
    float* squares = sums + Space::padded(columns);
    float* means = squares + Space::padded(columns);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * step, count = std::min(step, spatial - first);
      const float* x = load(p.x, (i / blocks * spatial + first) * columns, count * columns, buffer);
      Moments* out = partial + i * groups;
      const double values = static_cast<double>(count * width);
      std::fill_n(sums, columns, 0.0f);
      for (int64_t r = 0; r < count; ++r) {
        const float* row = x + r * columns;
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c) sums[c] += row[c];
      }
      for (int64_t g = 0; g < groups; ++g) {
        double sum = 0;
        for (int64_t c = g * width; c < (g + 1) * width; ++c) sum += sums[c];
        std::fill_n(means + g * width, width, static_cast<float>(sum / values));
      }
      // What the mean's rounding left over is put back: the deviations' sum would be zero with the exact mean.
      std::fill_n(sums, columns, 0.0f);
      std::fill_n(squares, columns, 0.0f);
      for (int64_t r = 0; r < count; ++r) {
        const float* row = x + r * columns;
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c) {
          const float deviation = row[c] - means[c];
          sums[c] += deviation;
          squares[c] += deviation * deviation;
        }
      }
      for (int64_t g = 0; g < groups; ++g) {
        double rest = 0, square = 0;
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
          rest += sums[c];
          square += squares[c];
        }
        out[g] = Moments{values, means[g * width] + rest / values, square - rest * rest / values};
      }
    }
  });
  for (int64_t s = 0; s < p.samples; ++s) {
    for (int64_t g = 0; g < groups; ++g) {
      Moments all;
      for (int64_t i = 0; i < blocks; ++i) all.add(partial[(s * blocks + i) * groups + g]);
      float* out = stats + (s * groups + g) * 2;
      out[0] = static_cast<float>(all.mean);
      out[1] = static_cast<float>(1.0 / std::sqrt(all.squares / all.count + p.eps));
    }
  }
}

// Fills the channel vectors for the run of `row`, unless they are there already.
void enter_run(const Plan& p, const float* stats, int64_t row, Space& s) {
  const int64_t run = row / p.run;
  if (s.run == run) return;
  s.run = run;
  p.affine(row / p.ada_run, s.a, s.b);
  if (p.norm != kNormGroup) return;
  const int64_t width = p.columns / p.groups;
  const float* sample = stats + row / (p.rows / p.samples) * p.groups * 2;
  for (int64_t g = 0; g < p.groups; ++g) {
    std::fill_n(s.mean + g * width, width, sample[2 * g]);
    std::fill_n(s.rstd + g * width, width, sample[2 * g + 1]);
  }
}

// n of one row.
void normalise(const Plan& p, const Space& s, const float* stats, int64_t row, const float* x, float* n) {
  const int64_t columns = p.columns;
  if (p.norm == kNormGroup) {
    const float *mean = s.mean, *rstd = s.rstd;
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) n[c] = (x[c] - mean[c]) * rstd[c];
    return;
  }
  float mean, rstd;
  kept_stats(p, stats, row, mean, rstd);
#pragma omp simd
  for (int64_t c = 0; c < columns; ++c) n[c] = (x[c] - mean) * rstd;
}

// For rows begin .. end of one run: n into s.n, and the gradient du at the activation's input, whose place is returned.
const float* recompute(const Plan& p, Space& s, const float* stats, Operand dy, int64_t begin, int64_t end) {
  const int64_t columns = p.columns, offset = begin * columns, count = (end - begin) * columns;
  enter_run(p, stats, begin, s);
  const float* x = load(p.x, offset, count, s.x);
  const float* du = load(dy, offset, count, s.dy);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t i = (r - begin) * columns;
    normalise(p, s, stats, r, x + i, s.n + i);
    if (p.act == kUnaryNone) continue;
    const float *n = s.n + i, *a = s.a, *b = s.b;
    float* u = s.u + i;
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) u[c] = n[c] * a[c] + b[c];
  }
  if (p.act == kUnaryNone) return du;
  unary_grad_block(p.act, s.u, du, s.u, count);
  return s.u;
}

// Layer norm of few channels leaves little of a gradient: of two channels, eps / (variance + eps). That is what remains
// of three terms which cancel otherwise, so the row is computed anew in double.
constexpr int64_t kNarrow = 16;
void narrow_layer_gradient(const Plan& p, const float* x, const float* du, const float* a, float* dx) {
  const int64_t columns = p.columns;
  const double share = 1.0 / static_cast<double>(columns);
  double mean = 0, k0 = 0, squares = 0, product = 0, centred[kNarrow], g[kNarrow];
  for (int64_t c = 0; c < columns; ++c) {
    g[c] = static_cast<double>(du[c]) * a[c];
    mean += share * x[c];
    k0 += share * g[c];
  }
  for (int64_t c = 0; c < columns; ++c) {
    centred[c] = x[c] - mean;
    squares += share * centred[c] * centred[c];
    product += share * g[c] * centred[c];
  }
  const double rstd = 1.0 / std::sqrt(squares + p.eps), k1 = product * rstd * rstd;
  for (int64_t c = 0; c < columns; ++c) dx[c] = static_cast<float>(rstd * (g[c] - k0 - centred[c] * k1));
}

// dx of one row from du and n. Group norm finds the means in k0 and k1.
void row_gradient(const Plan& p, const Space& s, const float* stats, int64_t row, const float* du, const float* n,
                  float* dx) {
  const int64_t columns = p.columns;
  const float* a = s.a;
  if (p.norm == kNormNone) {
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) dx[c] = du[c] * a[c];
    return;
  }
  if (p.norm == kNormGroup) {
    const float *rstd = s.rstd, *k0 = s.k0, *k1 = s.k1;
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) dx[c] = rstd[c] * (du[c] * a[c] - k0[c] - n[c] * k1[c]);
    return;
  }
  if (p.norm == kNormLayer && columns <= kNarrow) {
    float buffer[kNarrow];
    return narrow_layer_gradient(p, load(p.x, row * columns, columns, buffer), du, a, dx);
  }
  float mean, rstd;
  kept_stats(p, stats, row, mean, rstd);
  const float share = 1.0f / static_cast<float>(columns);
  const float k1 = share * sum_of(columns, [=](int64_t c) { return du[c] * a[c] * n[c]; });
  const float k0 = p.norm == kNormLayer ? share * sum_of(columns, [=](int64_t c) { return du[c] * a[c]; }) : 0.0f;
#pragma omp simd
  for (int64_t c = 0; c < columns; ++c) dx[c] = rstd * (du[c] * a[c] - k0 - n[c] * k1);
}

}  // namespace

void norm_act(const Call& call) {
  const Plan p(call, call[0], call[1], call[2], call[3]);
  const Operand y = call[4];
  float* stats = call[5].data<float>();
  if (p.empty()) return;
  if (p.norm == kNormGroup) group_stats(p, stats);
  const bool per_row = p.norm == kNormPixel || p.norm == kNormRms || p.norm == kNormLayer;
  float* base = spaces(p);
  const int64_t columns = p.columns;
  parallel(p.rows, static_cast<double>(columns) * p.cost() + 10, [&](int64_t begin, int64_t end) {
    Space s(p, base + omp_get_thread_num() * Space::size(p));
    for_batches(p, begin, end, [&](int64_t first, int64_t last) {
      const int64_t offset = first * columns, count = (last - first) * columns;
      enter_run(p, stats, first, s);
      const float* x = load(p.x, offset, count, s.x);
      float* out = target(y, offset, s.out);
      const float *a = s.a, *b = s.b;
      for (int64_t r = first; r < last; ++r) {
        const float* row = x + (r - first) * columns;
        float* u = out + (r - first) * columns;
        if (p.norm == kNormGroup) {
          const float *mean = s.mean, *rstd = s.rstd;
#pragma omp simd
          for (int64_t c = 0; c < columns; ++c) u[c] = (row[c] - mean[c]) * rstd[c] * a[c] + b[c];
          continue;
        }
        float mean = 0, rstd = 1;
        if (per_row) {
          row_stats(p, row, mean, rstd);
          if (p.norm == kNormLayer) {
            stats[2 * r] = mean;
            stats[2 * r + 1] = rstd;
          } else {
            stats[r] = rstd;
          }
        }
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c) u[c] = (row[c] - mean) * rstd * a[c] + b[c];
      }
      if (p.act != kUnaryNone) unary_block(p.act, out, out, count);
      store(y, offset, count, out);
    });
  });
}

void norm_act_backward(const Call& call) {
  const Plan p(call, call[0], call[1], call[2], call[3]);
  const float* stats = call[4].data<const float>();
  const Operand dy = call[5], dx = call[6], dweight = call[7], dbias = call[8], dada = call[9];
  zero(dweight);
  zero(dbias);
  zero(dada);
  if (p.empty()) return;
  const int64_t columns = p.columns, groups = p.groups, width = columns / std::max<int64_t>(1, groups);
  const bool grouped = p.norm == kNormGroup, sums_wanted = dweight || dbias || dada;
  float* base = spaces(p);
  const int64_t stride = Space::size(p);

  // One batch: adds to S0, S1 where sums are wanted, writes dx unless the group's means are still unknown.
  const auto batch = [&](Space& s, int64_t first, int64_t last, float* sums, bool write) {
    const int64_t offset = first * columns;
    const float* du = recompute(p, s, stats, dy, first, last);
    float* out = target(dx, offset, s.out);
    for (int64_t i = 0; i < (last - first) * columns; i += columns) {
      if (sums) {
        const float *d = du + i, *n = s.n + i;
        float *s0 = sums, *s1 = sums + columns;
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c) {
          s0[c] += d[c];
          s1[c] += d[c] * n[c];
        }
      }
      if (write) row_gradient(p, s, stats, first + i / columns, du + i, s.n + i, out + i);
    }
    if (write) store(dx, offset, (last - first) * columns, out);
  };

  if (!sums_wanted && !grouped) {
    parallel(p.rows, static_cast<double>(columns) * (p.cost() + 0.5) + 10, [&](int64_t begin, int64_t end) {
      Space s(p, base + omp_get_thread_num() * stride);
      for_batches(p, begin, end, [&](int64_t first, int64_t last) { batch(s, first, last, nullptr, true); });
    });
    return;
  }

  // Slot 2: totals of dweight and dbias, group norm's two sums a group, and a row of S0, S1 for every ada group, since
  // group norm may cut those into several runs.
  const int64_t ada_groups = p.rows / p.ada_run;
  double* totals = scratch<double>(2, 2 * columns + (grouped ? p.samples * groups * 2 + ada_groups * columns : 0));
  double* group_sums = totals + 2 * columns;
  float* ada_sums = reinterpret_cast<float*>(group_sums + (grouped ? p.samples * groups * 2 : 0));
  if (grouped) {
    std::fill_n(group_sums, p.samples * groups * 2, 0.0);
    std::fill_n(ada_sums, ada_groups * 2 * columns, 0.0f);
  }
  const auto write_ada = [&](int64_t g, const float* sums, float* buffer) {
    const int64_t first = g * dada.dim(1) * columns;
    store(dada, first + p.shift_row * columns, columns, sums);
    for (int64_t c = 0; c < columns; ++c) {
      const float z1 = p.weight ? p.weight.data<float>()[c] * sums[columns + c] : sums[columns + c];
      buffer[c] = p.bias ? z1 + p.bias.data<float>()[c] * sums[c] : z1;
    }
    store(dada, first + p.scale_row * columns, columns, buffer);
  };

  sum_columns(
      p.rows, p.run, columns, 2 * columns, p.cost() + 0.5, grouped, totals,
      [&](int64_t begin, int64_t end, float* sums) {
        Space s(p, base + omp_get_thread_num() * stride);
        for_batches(p, begin, end, [&](int64_t first, int64_t last) { batch(s, first, last, sums, !grouped); });
      },
      [&](int64_t run, const float* sums, double* total) {
        Space s(p, base + omp_get_thread_num() * stride);
        const int64_t row = run * p.run, g = row / p.ada_run;
        if (dweight || dbias) {
          p.factor(g, s.a);
          for (int64_t c = 0; c < columns; ++c) {
            total[c] += static_cast<double>(s.a[c]) * sums[columns + c];
            total[columns + c] += static_cast<double>(s.a[c]) * sums[c];
          }
        }
        if (!grouped) {
          if (dada) write_ada(g, sums, s.k0);
          return;
        }
        for (int64_t c = 0; c < 2 * columns; ++c) ada_sums[g * 2 * columns + c] += sums[c];
        p.affine(g, s.a, s.b);
        double* out = group_sums + row / (p.rows / p.samples) * groups * 2;
        for (int64_t c = 0; c < columns; ++c) {
          out[c / width * 2] += static_cast<double>(s.a[c]) * sums[c];
          out[c / width * 2 + 1] += static_cast<double>(s.a[c]) * sums[columns + c];
        }
      });

  Space main(p, base);
  for (int64_t g = 0; g < ada_groups && grouped && dada; ++g) write_ada(g, ada_sums + g * 2 * columns, main.k0);
  for (int64_t c = 0; c < columns; ++c) {
    if (dweight) dweight.data<float>()[c] = static_cast<float>(totals[c]);
    if (dbias) dbias.data<float>()[c] = static_cast<float>(totals[columns + c]);
  }
  if (!grouped) return;

  const double share = 1.0 / static_cast<double>(p.rows / p.samples * width);
  parallel(p.rows, static_cast<double>(columns) * (p.cost() + 0.5) + 10, [&](int64_t begin, int64_t end) {
    Space s(p, base + omp_get_thread_num() * stride);
    for_batches(p, begin, end, [&](int64_t first, int64_t last) {
      if (first / p.run != s.run) {
        const double* sums = group_sums + first / (p.rows / p.samples) * groups * 2;
        for (int64_t g = 0; g < groups; ++g) {
          std::fill_n(s.k0 + g * width, width, static_cast<float>(sums[2 * g] * share));
          std::fill_n(s.k1 + g * width, width, static_cast<float>(sums[2 * g + 1] * share));
        }
      }
      batch(s, first, last, nullptr, true);
    });
  });
}

}  // namespace ltx::cpu
