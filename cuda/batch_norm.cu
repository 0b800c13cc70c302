// Batch norm: statistics of every channel over all rows, n = (x - mean) rstd, y = n weight + bias.
#include "moments.cuh"

namespace ltx::cuda {
namespace {

struct Running {
  float *mean, *variance;  // (C)
  float momentum, unbiased;
};

// stats (2, C) = mean, 1 / std from moments (2, C) of `rows` rows, towards which the running statistics move; from
// those where there are no moments.
__global__ void __launch_bounds__(kThreads)
    batch_stats(const float* moments, Running running, float rows, float eps, int64_t columns, float* stats) {
  for (int64_t c = strided_begin(); c < columns; c += strided_step()) {
    float mean = running.mean[c], variance = running.variance[c];
    if (moments) {
      const float kept_mean = mean, kept_variance = variance;
      mean = moments[c];
      variance = moments[columns + c] / rows;
      running.mean[c] = kept_mean + running.momentum * (mean - kept_mean);
      running.variance[c] = kept_variance + running.momentum * (variance * running.unbiased - kept_variance);
    }
    stats[c] = mean;
    stats[columns + c] = 1.0f / sqrtf(variance + eps);
  }
}

template <class T, int V>
struct Normalise {
  const T* x;
  const float *stats, *weight, *bias;  // weight, bias may be null
  T* y;
  int64_t columns;
  struct State {
    Floats<V> mean, factor, shift;
  };
  LTX_DEVICE State enter(int64_t, int64_t column) const {
    State s{load<V>(stats + column), load<V>(stats + columns + column), filled<V>(0.0f)};
    if (weight) {
      const Floats<V> w = load<V>(weight + column);
#pragma unroll
      for (int j = 0; j < V; ++j) s.factor[j] *= w[j];
    }
    if (bias) s.shift = load<V>(bias + column);
    return s;
  }
  LTX_DEVICE void operator()(int64_t row, int64_t column, const State& s) const {
    Floats<V> value = load<V>(x + row * columns + column);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] = (value[j] - s.mean[j]) * s.factor[j] + s.shift[j];
    store(y + row * columns + column, value);
  }
};

// S0 = sum dy, S1 = sum dy (x - mean).
template <class T, int V>
struct GradientSums {
  const T *x, *dy;
  const float* stats;
  int64_t columns;
  using State = Floats<V>;
  LTX_DEVICE State enter(int64_t, int64_t column) const { return load<V>(stats + column); }
  LTX_DEVICE void operator()(int64_t row, int64_t column, const State& mean, Floats<V> (&sums)[2]) const {
    const Floats<V> value = load<V>(x + row * columns + column), d = load<V>(dy + row * columns + column);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      sums[0][j] += d[j];
      sums[1][j] += d[j] * (value[j] - mean[j]);
    }
  }
};

// From sums (2, C), null where nobody asked: dbias, dweight (null where left out) and factors (3, C) of
// dx = factor dy - k0 - (x - mean) k1; k0 and k1 are zero where the statistics are constants.
__global__ void __launch_bounds__(kThreads)
    finish_backward(const float* sums, const float* stats, const float* weight, float share, bool training,
                    int64_t columns, float* dweight, float* dbias, float* factors) {
  for (int64_t c = strided_begin(); c < columns; c += strided_step()) {
    const float rstd = stats[columns + c], factor = weight ? rstd * weight[c] : rstd;
    const float s0 = sums ? sums[c] : 0.0f, s1 = sums ? sums[columns + c] * rstd : 0.0f;
    if (dbias) dbias[c] = s0;
    if (dweight) dweight[c] = s1;
    factors[c] = factor;
    factors[columns + c] = training ? factor * s0 * share : 0.0f;
    factors[2 * columns + c] = training ? factor * rstd * s1 * share : 0.0f;
  }
}

template <class T, int V>
struct InputGradient {
  const T *x, *dy;
  const float *stats, *factors;
  T* dx;
  int64_t columns;
  struct State {
    Floats<V> mean, factor, k0, k1;
  };
  LTX_DEVICE State enter(int64_t, int64_t column) const {
    return {load<V>(stats + column), load<V>(factors + column), load<V>(factors + columns + column),
            load<V>(factors + 2 * columns + column)};
  }
  LTX_DEVICE void operator()(int64_t row, int64_t column, const State& s) const {
    const Floats<V> value = load<V>(x + row * columns + column);
    Floats<V> d = load<V>(dy + row * columns + column);
#pragma unroll
    for (int j = 0; j < V; ++j) d[j] = s.factor[j] * d[j] - s.k0[j] - (value[j] - s.mean[j]) * s.k1[j];
    store(dx + row * columns + column, d);
  }
};

}  // namespace

void batch_norm(const Call& call) {
  const Operand x = call[0], weight = call[1], bias = call[2], y = call[3], stats = call[4];
  const int64_t columns = x.columns(), rows = columns ? x.rows() : 0;
  const float eps = static_cast<float>(call.scalar(0));
  if (!rows) return clear(call, stats);
  const double n = static_cast<double>(rows);
  const Running running{call[5].data<float>(), call[6].data<float>(), static_cast<float>(call.scalar(1)),
                        static_cast<float>(n / (n - 1.0))};
  float* moments = call.integer(2) ? scratch<float>(call, 0, 2 * columns) : nullptr;
  dispatch(x, [&](auto tag) {
    using T = decltype(tag);
    if (moments) column_moments(call, x.data<const T>(), rows, rows, columns, moments);
    LTX_LAUNCH(call, batch_stats, grid_for(columns), dim3(kThreads), 0, moments, running, static_cast<float>(n), eps,
               columns, stats.data<float>());
    dispatch_width<T>(columns,
                      {x.data<void>(), y.data<void>(), stats.data<void>(), data<void>(weight), data<void>(bias)},
                      [&](auto width) {
                        constexpr int V = decltype(width)::value;
                        visit_columns<V>(call, rows, rows, columns,
                                         Normalise<T, V>{x.data<const T>(), stats.data<float>(), data<float>(weight),
                                                         data<float>(bias), y.data<T>(), columns});
                      });
  });
}

// With S0 = sum dy, S1 = sum dy n over N rows: dbias = S0, dweight = S1, dx = weight rstd (dy - S0 / N - n S1 / N), the
// last two terms only where the statistics are the batch's own.
void batch_norm_backward(const Call& call) {
  const Operand x = call[0], weight = call[1], stats = call[2], dy = call[3], dx = call[4], dweight = call[5],
                dbias = call[6];
  const int64_t columns = x.columns(), rows = columns ? x.rows() : 0;
  const bool training = call.integer(0) != 0;
  if (!rows) {
    clear(call, dweight);
    return clear(call, dbias);
  }
  if (x.dtype() != dy.dtype()) throw std::runtime_error("expected x and dy of one type");
  float* sums = training || dweight || dbias ? scratch<float>(call, 0, 2 * columns) : nullptr;
  float* factors = scratch<float>(call, 1, 3 * columns);
  dispatch(x, [&](auto tag) {
    using T = decltype(tag);
    const T *in = x.data<const T>(), *d = dy.data<const T>();
    const float* kept = stats.data<float>();
    dispatch_width<T>(columns, {in, d, kept, data<void>(dx)}, [&](auto width) {
      constexpr int V = decltype(width)::value;
      if (sums) sum_columns<2, V>(call, rows, rows, columns, sums, GradientSums<T, V>{in, d, kept, columns});
      LTX_LAUNCH(call, finish_backward, grid_for(columns), dim3(kThreads), 0, sums, kept, data<float>(weight),
                 static_cast<float>(1.0 / static_cast<double>(rows)), training, columns, data<float>(dweight),
                 data<float>(dbias), factors);
      if (!dx) return;
      visit_columns<V>(call, rows, rows, columns, InputGradient<T, V>{in, d, kept, factors, dx.data<T>(), columns});
    });
  });
}

}  // namespace ltx::cuda
