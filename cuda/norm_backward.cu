// The gradients of norm_act. All those of a channel come from two sums over the rows of one ada group, S0 = sum du and
// S1 = sum du n: dshift = S0, dscale = weight S1 + bias S0, dweight += (1 + scale) S1, dbias += (1 + scale) S0.
#include "norm.cuh"
#include "samples.cuh"

namespace ltx::cuda {
namespace {

// x becomes n, dy becomes du, the gradient at the activation's input.
template <int V>
LTX_DEVICE void recompute(int act, const Floats<V>& a, const Floats<V>& b, const Floats<V>& mean, const Floats<V>& rstd,
                          Floats<V>& x, Floats<V>& dy) {
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = (x[j] - mean[j]) * rstd[j];
  if (act == kUnaryNone) return;
  Floats<V> u;
#pragma unroll
  for (int j = 0; j < V; ++j) u[j] = x[j] * a[j] + b[j];
  activate_backward(act, u, dy);
}

// How the rows of each run are shared out: blocks of teams, each a slab. Where a row takes the whole block, the slabs'
// sums are as long as two rows, and fewer of them pay for a less even end.
struct RowSlabs {
  int64_t run, runs, slabs, slab_rows;
  RowSlabs(const NormPlan& p, int64_t teams) : run(p.run), runs(p.rows / p.run) {
    const int64_t wanted = std::max<int64_t>(1, (teams > 1 ? 1024 : 512) / runs);
    slab_rows = std::clamp<int64_t>(divide_up(run, wanted), 4 * teams, Slabs::kChain * teams);
    slabs = divide_up(run, slab_rows);
  }
};

// dx of norms whose statistics are a row's own, and the columns' sums (runs, slabs, 2, C) = S0, S1 unless null. A
// thread keeps its columns' A, B and sums in registers over the slab. The choice of the activation is made once for all
// of them, since every choice is code for each of the columns.
template <class T, int V, int K>
__global__ void __launch_bounds__(kThreads)
    norm_rows_backward(NormPlan p, RowSlabs s, const T* x, const T* dy, const float* stats, T* dx, float* sums) {
  constexpr int kOwn = V * K;
  const int64_t stride = static_cast<int64_t>(blockDim.x) * V, column0 = threadIdx.x * V;
  const int64_t run = blockIdx.x / s.slabs, offset = blockIdx.x % s.slabs * s.slab_rows;
  const int64_t begin = run * s.run + offset, end = run * s.run + min(s.run, offset + s.slab_rows);
  const float share = 1.0f / static_cast<float>(p.columns);
  // Part k of the thread's columns, and back.
  const auto part = [](const Floats<kOwn>& all, int k) {
    Floats<V> values;
#pragma unroll
    for (int j = 0; j < V; ++j) values[j] = all[k * V + j];
    return values;
  };
  const auto set = [](Floats<kOwn>& all, int k, const Floats<V>& values) {
#pragma unroll
    for (int j = 0; j < V; ++j) all[k * V + j] = values[j];
  };
  // Zeros where there are no columns: what is computed from them is zero, too.
  Floats<kOwn> a = filled<kOwn>(0.0f), b = a, s0 = a, s1 = a;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (column0 + k * stride >= p.columns) continue;
    Floats<V> factor, shift;
    p.affine(begin, column0 + k * stride, factor, shift);
    set(a, k, factor);
    set(b, k, shift);
  }
  for (int64_t first = begin; first < end; first += blockDim.y) {
    const int64_t row = first + threadIdx.y, base = row * p.columns, stop = row < end ? p.columns : 0;
    Floats<kOwn> n = filled<kOwn>(0.0f), du = n;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t column = column0 + k * stride;
      if (column >= stop) continue;
      set(n, k, load<V>(x + base + column));
      set(du, k, load<V>(dy + base + column));
    }
    float mean = 0.0f, rstd = 0.0f, means[2] = {0.0f, 0.0f};
    if (stop) p.row_stats(stats, row, mean, rstd);
    recompute(p.act, a, b, filled<kOwn>(mean), filled<kOwn>(rstd), n, du);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (column0 + k * stride >= stop) continue;
#pragma unroll
      for (int j = k * V; j < (k + 1) * V; ++j) {
        means[0] += du[j] * a[j];
        means[1] += du[j] * a[j] * n[j];
        s0[j] += du[j];
        s1[j] += du[j] * n[j];
      }
    }
    team_sum(means);
    const float k0 = p.norm == kNormLayer ? means[0] * share : 0.0f, k1 = means[1] * share;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) du[j] = rstd * (du[j] * a[j] - k0 - n[j] * k1);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (column0 + k * stride < stop) store(dx + base + column0 + k * stride, part(du, k));
    }
  }
  if (!sums) return;
  const int width = blockDim.x * kOwn;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Floats<kOwn>& own = i ? s1 : s0;
    float* const out = sums + (static_cast<int64_t>(blockIdx.x) * 2 + i) * p.columns;
    if (blockDim.y == 1) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (column0 + k * stride < p.columns) store(out + column0 + k * stride, part(own, k));
      }
      continue;
    }
    LTX_DYNAMIC_SHARED(float, shared);  // (teams, lanes * V * K)
    __syncthreads();                    // the first sums have been read
#pragma unroll
    for (int k = 0; k < K; ++k) store(shared + threadIdx.y * width + column0 + k * stride, part(own, k));
    __syncthreads();
    for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < width && c < p.columns; c += blockDim.x * blockDim.y) {
      float sum = 0.0f;
      for (int team = 0; team < static_cast<int>(blockDim.y); ++team) sum += shared[team * width + c];
      out[c] = sum;
    }
  }
}

// dx alone, without holding the row in registers: x and dy are read twice, most likely from the cache.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    norm_rows_backward_again(NormPlan p, const T* x, const T* dy, const float* stats, T* dx) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y, base = row * p.columns;
  const int64_t end = row < p.rows ? p.columns : 0;
  float mean = 0.0f, rstd = 0.0f, means[2] = {0.0f, 0.0f};
  if (end) p.row_stats(stats, row, mean, rstd);
  const auto visit = [&](auto body) {
    for (int64_t column = threadIdx.x * V; column < end; column += static_cast<int64_t>(blockDim.x) * V) {
      Floats<V> a, b, n = load<V>(x + base + column), du = load<V>(dy + base + column);
      p.affine(row, column, a, b);
      recompute(p.act, a, b, filled<V>(mean), filled<V>(rstd), n, du);
#pragma unroll
      for (int j = 0; j < V; ++j) du[j] *= a[j];
      body(column, n, du);
    }
  };
  visit([&](int64_t, const Floats<V>& n, const Floats<V>& dn) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      means[0] += dn[j];
      means[1] += dn[j] * n[j];
    }
  });
  team_sum(means);
  const float share = 1.0f / static_cast<float>(p.columns);
  const float k0 = p.norm == kNormLayer ? means[0] * share : 0.0f, k1 = means[1] * share;
  visit([&](int64_t column, const Floats<V>& n, Floats<V> dn) {
#pragma unroll
    for (int j = 0; j < V; ++j) dn[j] = rstd * (dn[j] - k0 - n[j] * k1);
    store(dx + base + column, dn);
  });
}

// S0 and S1 alone; with dx, which is du A without a norm, that too.
template <class T, int V>
struct GradientSums {
  NormPlan p;
  const T *x, *dy;
  const float* stats;
  T* dx;
  struct State {
    Floats<V> a, b, mean, rstd;
  };
  LTX_DEVICE State enter(int64_t row, int64_t column) const {
    State s;
    p.affine(row, column, s.a, s.b);
    p.column_stats(stats, row, column, s.mean, s.rstd);
    return s;
  }
  LTX_DEVICE void operator()(int64_t row, int64_t column, const State& s, Floats<V> (&sums)[2]) const {
    Floats<V> n = load<V>(x + row * p.columns + column), du = load<V>(dy + row * p.columns + column);
    if (p.by_row()) {
      float mean, rstd;
      p.row_stats(stats, row, mean, rstd);
      recompute(p.act, s.a, s.b, filled<V>(mean), filled<V>(rstd), n, du);
    } else {
      recompute(p.act, s.a, s.b, s.mean, s.rstd, n, du);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
      sums[0][j] += du[j];
      sums[1][j] += du[j] * n[j];
      du[j] *= s.a[j];
    }
    if (dx) store(dx + row * p.columns + column, du);
  }
};

// dx of group norm, whose means (samples, groups, 2) are known by now, and without a norm.
template <class T, int V>
struct InputGradient {
  NormPlan p;
  const T *x, *dy;
  const float *stats, *means;
  T* dx;
  struct State {
    Floats<V> a, b, mean, rstd, k0, k1;
  };
  LTX_DEVICE State enter(int64_t row, int64_t column) const {
    State s;
    p.affine(row, column, s.a, s.b);
    p.column_stats(stats, row, column, s.mean, s.rstd);
    if (means) p.group_pairs(means, row, column, s.k0, s.k1);
    return s;
  }
  LTX_DEVICE void operator()(int64_t row, int64_t column, const State& s) const {
    Floats<V> n = load<V>(x + row * p.columns + column), du = load<V>(dy + row * p.columns + column);
    recompute(p.act, s.a, s.b, s.mean, s.rstd, n, du);
#pragma unroll
    for (int j = 0; j < V; ++j) du[j] *= s.a[j];
    if (means) {
#pragma unroll
      for (int j = 0; j < V; ++j) du[j] = s.rstd[j] * (du[j] - s.k0[j] - n[j] * s.k1[j]);
    }
    store(dx + row * p.columns + column, du);
  }
};

// means (samples, groups, 2) of A du and A du n over a group's elements, from S0 and S1 (rows / run, 2, C). One block a
// sample and group.
__global__ void __launch_bounds__(kThreads) group_means(NormPlan p, const float* sums, float* means) {
  const int64_t sample = blockIdx.x / p.groups, width = p.columns / p.groups;
  const int64_t runs = p.sample_rows() / p.run, column0 = blockIdx.x % p.groups * width;
  float totals[2] = {0.0f, 0.0f};
  for (int64_t i = threadIdx.x; i < runs * width; i += kThreads) {
    const int64_t run = sample * runs + i / width, column = column0 + i % width;
    Floats<1> a, b;
    p.affine(run * p.run, column, a, b);
    totals[0] += a[0] * sums[run * 2 * p.columns + column];
    totals[1] += a[0] * sums[(run * 2 + 1) * p.columns + column];
  }
  team_sum(totals);
  if (threadIdx.x != 0) return;
  const float share = 1.0f / (static_cast<float>(p.sample_rows()) * static_cast<float>(width));
  means[2 * blockIdx.x] = totals[0] * share;
  means[2 * blockIdx.x + 1] = totals[1] * share;
}

// dada (G, table, C) from S0 and S1 (G, 2, C).
struct WriteTable {
  NormPlan p;
  const float* sums;
  AnyFloat dada;
  LTX_DEVICE void operator()(int64_t g, int64_t i) const {
    const int64_t table_row = i / p.columns, column = i % p.columns;
    const float s0 = sums[g * 2 * p.columns + column], s1 = sums[(g * 2 + 1) * p.columns + column];
    float value = 0.0f;
    if (table_row == p.scale_row) {
      value = (p.weight ? p.weight[column] * s1 : s1) + (p.bias ? p.bias[column] * s0 : 0.0f);
    } else if (table_row == p.shift_row) {
      value = s0;
    }
    dada.set(g * p.table * p.columns + i, value);
  }
};

// (1 + scale) S0 and (1 + scale) S1 of each ada group.
struct Scaled {
  NormPlan p;
  const float* sums;
  using State = float;
  LTX_DEVICE State enter(int64_t, int64_t) const { return 0.0f; }
  LTX_DEVICE void operator()(int64_t g, int64_t column, State, Floats<1> (&total)[2]) const {
    const float factor = 1.0f + p.scale(g * p.ada_run, column);
    total[0][0] += factor * sums[g * 2 * p.columns + column];
    total[1][0] += factor * sums[(g * 2 + 1) * p.columns + column];
  }
};

// The gradients of the parameters from S0 and S1 (rows / run, 2, C).
void write_parameters(const Call& call, const NormPlan& p, const float* sums, Operand dweight, Operand dbias,
                      Operand dada) {
  const int64_t groups = p.rows / p.ada_run, runs_a_group = p.ada_run / p.run, width = 2 * p.columns;
  if (runs_a_group > 1) {  // group norm cuts ada's groups where samples end
    float* merged = scratch<float>(call, 1, groups * width);
    combine(call, sums, groups, runs_a_group, width, merged);
    sums = merged;
  }
  if (dada) visit_samples<1>(call, groups, p.table * p.columns, WriteTable{p, sums, any_float(dada)});
  if (!dweight && !dbias) return;
  if (p.ada) {
    float* totals = scratch<float>(call, 2, width);
    sum_columns<2, 1>(call, groups, groups, p.columns, totals, Scaled{p, sums});
    sums = totals;
  }
  const size_t bytes = static_cast<size_t>(p.columns) * sizeof(float);
  if (dbias) copy(context(call), dbias.data<void>(), sums, bytes);
  if (dweight) copy(context(call), dweight.data<void>(), sums + p.columns, bytes);
}

}  // namespace

void norm_act_backward(const Call& call) {
  const Operand x = call[0], dy = call[5], dx = call[6], dweight = call[7], dbias = call[8], dada = call[9];
  const NormPlan p(call, x, call[1], call[2], call[3]);
  const float* stats = call[4].data<float>();
  if (p.empty()) {
    for (Operand gradient : {dweight, dbias, dada}) clear(call, gradient);
    return;
  }
  if (dy.dtype() != x.dtype()) throw std::runtime_error("expected x and dy of one type");
  const bool grouped = p.norm == kNormGroup, wanted = dweight || dbias || dada;
  float* sums = wanted || grouped ? scratch<float>(call, 0, p.rows / p.run * 2 * p.columns) : nullptr;
  const auto addresses = {x.data<const void>(),
                          dy.data<const void>(),
                          dx.data<const void>(),
                          static_cast<const void*>(p.weight),
                          static_cast<const void*>(p.bias),
                          static_cast<const void*>(p.ada.data)};
  const auto sum_gradients = [&](auto tag, auto width, auto* written) {
    using T = decltype(tag);
    constexpr int V = decltype(width)::value;
    sum_columns<2, V>(call, p.rows, p.run, p.columns, sums,
                      GradientSums<T, V>{p, x.data<const T>(), dy.data<const T>(), stats, written});
  };

  if (p.by_row()) {
    const bool aligned = std::all_of(addresses.begin(), addresses.end(), aligned16);
    dispatch_teams(x, aligned, p.columns, [&](auto tag, auto width, auto held, const Teams& teams) {
      using T = decltype(tag);
      constexpr int V = decltype(width)::value, K = decltype(held)::value;
      const T *in = x.data<const T>(), *d = dy.data<const T>();
      if constexpr (K == 0) {
        LTX_LAUNCH(call, (norm_rows_backward_again<T, V>), dim3(static_cast<uint32_t>(divide_up(p.rows, teams.teams))),
                   teams.block(), 0, p, in, d, stats, dx.data<T>());
        if (sums) sum_gradients(tag, width, static_cast<T*>(nullptr));
      } else {
        const RowSlabs s(p, teams.teams);
        float* partials = sums && s.slabs > 1 ? scratch<float>(call, 5, s.runs * s.slabs * 2 * p.columns) : sums;
        const size_t shared = teams.teams > 1 ? size_t{teams.lanes} * teams.teams * V * K * sizeof(float) : 0;
        LTX_LAUNCH(call, (norm_rows_backward<T, V, K>), dim3(static_cast<uint32_t>(s.runs * s.slabs)), teams.block(),
                   shared, p, s, in, d, stats, dx.data<T>(), partials);
        if (partials != sums) combine(call, partials, s.runs, s.slabs, 2 * p.columns, sums);
      }
    });
  } else {
    dispatch(x, [&](auto tag) {
      using T = decltype(tag);
      dispatch_width<T>(p.columns, addresses, [&](auto width) {
        constexpr int V = decltype(width)::value;
        float* means = grouped ? scratch<float>(call, 3, p.samples * p.groups * 2) : nullptr;
        if (sums) sum_gradients(tag, width, grouped ? static_cast<T*>(nullptr) : dx.data<T>());
        if (!grouped && sums) return;  // dx is written
        if (grouped) {
          LTX_LAUNCH(call, group_means, dim3(static_cast<uint32_t>(p.samples * p.groups)), dim3(kThreads), 0, p, sums,
                     means);
        }
        visit_columns<V>(call, p.rows, p.run, p.columns,
                         InputGradient<T, V>{p, x.data<const T>(), dy.data<const T>(), stats, means, dx.data<T>()});
      });
    });
  }
  if (wanted) write_parameters(call, p, sums, dweight, dbias, dada);
}

}  // namespace ltx::cuda
