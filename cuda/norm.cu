// Normalisation, modulation and activation in one pass over x; group norm takes its statistics in one before.
#include "moments.cuh"
#include "norm.cuh"

namespace ltx::cuda {
namespace {

// Norms whose statistics are a row's own: one team a row. x, y (R, C), stats (R) or (R, 2).
template <class T, int V, int K>
__global__ void __launch_bounds__(kThreads) norm_rows(NormPlan p, const T* x, T* y, float* stats) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool valid = row < p.rows;
  const int64_t base = row * p.columns, stride = static_cast<int64_t>(blockDim.x) * V;
  const int64_t first = threadIdx.x * V, end = valid ? p.columns : 0;
  Floats<V> held[K ? K : 1];
  // Calls body(column, values of x) for the thread's vectors.
  const auto visit = [&](auto body) {
    if constexpr (K > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int64_t column = first + k * stride;
        if (column < end) body(column, held[k]);
      }
    } else {
      for (int64_t column = first; column < end; column += stride) body(column, load<V>(x + base + column));
    }
  };
  if constexpr (K > 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t column = first + k * stride;
      if (column < end) held[k] = load<V>(x + base + column);
    }
  }
  const float share = 1.0f / static_cast<float>(p.columns);
  float mean = 0.0f;
  if (p.norm == kNormLayer) {
    float sum[1] = {0.0f};
    visit([&](int64_t, const Floats<V>& value) {
#pragma unroll
      for (int j = 0; j < V; ++j) sum[0] += value[j];
    });
    team_sum(sum);
    mean = sum[0] * share;
  }
  float squares[1] = {0.0f};
  visit([&](int64_t, const Floats<V>& value) {
#pragma unroll
    for (int j = 0; j < V; ++j) squares[0] += (value[j] - mean) * (value[j] - mean);
  });
  team_sum(squares);
  const float rstd = 1.0f / sqrtf(squares[0] * share + p.eps);
  if (threadIdx.x == 0 && valid) {
    if (p.norm == kNormLayer) {
      stats[2 * row] = mean;
      stats[2 * row + 1] = rstd;
    } else {
      stats[row] = rstd;
    }
  }
  visit([&](int64_t column, Floats<V> value) {
    Floats<V> a, b;
    p.affine(row, column, a, b);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] = (value[j] - mean) * rstd * a[j] + b[j];
    activate(p.act, value);
    store(y + base + column, value);
  });
}

// No norm, and group norm once it has its statistics: what a column needs stays the same over a run of rows.
template <class T, int V>
struct NormColumns {
  NormPlan p;
  const T* x;
  T* y;
  const float* stats;
  struct State {
    Floats<V> a, b, mean, rstd;
  };
  LTX_DEVICE State enter(int64_t row, int64_t column) const {
    State s;
    p.affine(row, column, s.a, s.b);
    p.column_stats(stats, row, column, s.mean, s.rstd);
    return s;
  }
  LTX_DEVICE void operator()(int64_t row, int64_t column, const State& s) const {
    Floats<V> value = load<V>(x + row * p.columns + column);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] = (value[j] - s.mean[j]) * s.rstd[j] * s.a[j] + s.b[j];
    activate(p.act, value);
    store(y + row * p.columns + column, value);
  }
};

// stats (samples, groups, 2) = mean, 1 / std from the moments (samples, 2, C) of the channels.
__global__ void __launch_bounds__(kThreads) group_stats(NormPlan p, const float* moments, float* stats) {
  const int64_t width = p.columns / p.groups;
  const float count = static_cast<float>(p.sample_rows());
  for (int64_t i = strided_begin(); i < p.samples * p.groups; i += strided_step()) {
    const float* mean = moments + i / p.groups * 2 * p.columns + i % p.groups * width;
    Moments all{0.0f, 0.0f, 0.0f};
    for (int64_t c = 0; c < width; ++c) all.add({count, mean[c], mean[p.columns + c]});
    stats[2 * i] = all.mean;
    stats[2 * i + 1] = 1.0f / sqrtf(all.squares / all.count + p.eps);
  }
}

}  // namespace

void norm_act(const Call& call) {
  const Operand x = call[0], y = call[4];
  const NormPlan p(call, x, call[1], call[2], call[3]);
  float* stats = call[5].data<float>();
  if (p.empty()) return;
  const auto addresses = {x.data<const void>(), static_cast<const void*>(p.weight), static_cast<const void*>(p.bias),
                          static_cast<const void*>(p.ada.data), y.data<const void>()};
  if (p.by_row()) {
    const bool aligned = std::all_of(addresses.begin(), addresses.end(), aligned16);
    return dispatch_teams(x, aligned, p.columns, [&](auto tag, auto width, auto held, const Teams& teams) {
      using T = decltype(tag);
      constexpr int V = decltype(width)::value, K = decltype(held)::value;
      LTX_LAUNCH(call, (norm_rows<T, V, K>), dim3(static_cast<uint32_t>(divide_up(p.rows, teams.teams))), teams.block(),
                 0, p, x.data<const T>(), y.data<T>(), stats);
    });
  }
  dispatch(x, [&](auto tag) {
    using T = decltype(tag);
    const T* in = x.data<const T>();
    if (p.norm == kNormGroup) {
      float* moments = scratch<float>(call, 0, p.samples * 2 * p.columns);
      column_moments(call, in, p.rows, p.sample_rows(), p.columns, moments);
      LTX_LAUNCH(call, group_stats, grid_for(p.samples * p.groups), dim3(kThreads), 0, p, moments, stats);
    }
    dispatch_width<T>(p.columns, addresses, [&](auto width) {
      constexpr int V = decltype(width)::value;
      visit_columns<V>(call, p.rows, p.run, p.columns, NormColumns<T, V>{p, in, y.data<T>(), stats});
    });
  });
}

}  // namespace ltx::cuda
