// What norm_act's two directions share.
//
//   n = (x - mean) rstd      u = n A + B      y = act(u)
//   A = weight (1 + scale)   B = bias (1 + scale) + shift
#pragma once
#include <numeric>

#include "activation.cuh"
#include "any_float.cuh"
#include "columns.cuh"

namespace ltx::cuda {

struct NormPlan {
  const float *weight, *bias;  // (C), may be null
  AnyFloat ada;                // (G, table, C), may be null
  int norm, act;
  float eps;
  int64_t groups, shift_row, scale_row, table;
  int64_t rows, columns, samples;
  int64_t ada_run;  // rows that share a row pair of ada
  int64_t run;      // rows that share ada's row pair and, for group norm, the sample

  NormPlan(const Call& call, Operand x, Operand weight, Operand bias, Operand ada)
      : weight(data<float>(weight)),
        bias(data<float>(bias)),
        ada(any_float(ada)),
        norm(static_cast<int>(call.integer(0))),
        act(static_cast<int>(call.integer(1))),
        eps(static_cast<float>(call.scalar(2))),
        groups(call.integer(3)),
        shift_row(call.integer(4)),
        scale_row(call.integer(5)),
        table(ada ? ada.dim(1) : 0),
        rows(x.rows()),
        columns(x.columns()),
        samples(x.dims() > 1 ? x.dim(0) : 1),
        ada_run(rows),
        run(rows) {
    if (empty()) return;
    if (ada) ada_run = rows / ada.dim(0);
    run = norm == kNormGroup ? std::gcd(ada_run, sample_rows()) : ada_run;
  }
  bool empty() const { return !rows || !columns; }
  LTX_HD int64_t sample_rows() const { return rows / samples; }
  // Whether each row has statistics of its own.
  LTX_HD bool by_row() const { return norm != kNormNone && norm != kNormGroup; }

  LTX_DEVICE float scale(int64_t row, int64_t column) const {
    return ada[(row / ada_run * table + scale_row) * columns + column];
  }
  // A and B of V columns.
  template <int V>
  LTX_DEVICE void affine(int64_t row, int64_t column, Floats<V>& a, Floats<V>& b) const {
    a = filled<V>(1.0f);
    b = filled<V>(0.0f);
    if (ada) {
      const int64_t group = row / ada_run * table;
      const Floats<V> scale = load<V>(ada, (group + scale_row) * columns + column);
      b = load<V>(ada, (group + shift_row) * columns + column);
#pragma unroll
      for (int j = 0; j < V; ++j) a[j] += scale[j];
    }
    if (bias) {
      const Floats<V> values = load<V>(bias + column);
#pragma unroll
      for (int j = 0; j < V; ++j) b[j] += values[j] * a[j];
    }
    if (weight) {
      const Floats<V> values = load<V>(weight + column);
#pragma unroll
      for (int j = 0; j < V; ++j) a[j] *= values[j];
    }
  }
  // For each of V columns, the two values of its group and the row's sample in pairs (samples, groups, 2): group norm's
  // mean and 1 / std, or the two means of its gradient.
  template <int V>
  LTX_DEVICE void group_pairs(const float* pairs, int64_t row, int64_t column, Floats<V>& first,
                              Floats<V>& second) const {
    const int64_t width = columns / groups;
    const float* sample = pairs + row / sample_rows() * groups * 2;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float* pair = sample + (column + j) / width * 2;
      first[j] = pair[0];
      second[j] = pair[1];
    }
  }
  // Mean and 1 / std of V columns for as long as they don't change with the row.
  template <int V>
  LTX_DEVICE void column_stats(const float* stats, int64_t row, int64_t column, Floats<V>& mean,
                               Floats<V>& rstd) const {
    if (norm == kNormGroup) return group_pairs(stats, row, column, mean, rstd);
    mean = filled<V>(0.0f);
    rstd = filled<V>(1.0f);
  }
  // Mean and 1 / std of a row that has its own.
  LTX_DEVICE void row_stats(const float* stats, int64_t row, float& mean, float& rstd) const {
    mean = norm == kNormLayer ? stats[2 * row] : 0.0f;
    rstd = norm == kNormLayer ? stats[2 * row + 1] : stats[row];
  }
};

// The threads that share a row: `lanes` neighbours in a block of (lanes, teams), each with `held` vectors of `width`
// columns in registers, or with any number of them that it reads again (held 0): rows that a block cannot hold, and
// rows that have to be read element by element, for which kernels of their own would not pay.
struct Teams {
  uint32_t lanes = 1, teams = 1;
  int held = 0;

  // 8 columns a thread: with more, registers leave too few threads to keep the memory busy.
  Teams(int64_t columns, int width) {
    const int64_t vectors = divide_up(columns, width);
    if (width > 1 && columns <= kThreads * 16) held = columns <= kThreads * 8 ? 8 / width : 16 / width;
    while (lanes < kThreads && lanes * std::max(1, held) < vectors) lanes *= 2;
    while (lanes <= kWarp && lanes * teams < kThreads) teams *= 2;
  }
  dim3 block() const { return dim3(lanes, teams); }
};

// Calls body(T, V, K, teams): K vectors of V columns a thread.
template <class Body>
void dispatch_teams(Operand x, bool aligned, int64_t columns, Body&& body) {
  dispatch(x, [&](auto tag) {
    constexpr int V = kVector<decltype(tag)>;
    const Teams teams(columns, aligned && columns % V == 0 ? V : 1);
    using std::integral_constant;
    if (!aligned || columns % V) return body(tag, integral_constant<int, 1>{}, integral_constant<int, 0>{}, teams);
    const integral_constant<int, V> width;
    if (teams.held == 8 / V) return body(tag, width, integral_constant<int, 8 / V>{}, teams);
    if (teams.held == 16 / V) return body(tag, width, integral_constant<int, 16 / V>{}, teams);
    body(tag, width, integral_constant<int, 0>{}, teams);
  });
}

// The sums over a team's threads, in all of them. All threads of the block must come here.
template <int N>
LTX_DEVICE void team_sum(float (&values)[N]) {
  LTX_SHARED(float, partial, [N][kWarp]);
  const int lanes = blockDim.x, warps = lanes / kWarp;
  for (int bits = min(lanes, kWarp) / 2; bits > 0; bits /= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] += __shfl_xor_sync(0xFFFFFFFFu, values[i], bits);
  }
  if (warps <= 1) return;
  const int lane = threadIdx.x % kWarp;
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) partial[i][threadIdx.x / kWarp] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = warp_reduce(lane < warps ? partial[i][lane] : 0.0f);
  __syncthreads();  // partial may be written again
}

}  // namespace ltx::cuda
