// The passes over rows of q and k before their heads are split: RMS norm over the full width and rotation in one launch
// for both tensors, and the adjoint of that.
#include <algorithm>

#include "attention.cuh"
#include "attention_rows.cuh"
#include "columns.cuh"

namespace ltx::cuda {
namespace {

// Which piece of q's or k's a block works on: by turns if both have as many, so that they share the tables' rows in the
// cache, else first all of q's.
struct Turn {
  bool of_q;
  uint32_t index;
  LTX_DEVICE Turn(uint32_t of_q_count, uint32_t of_k_count) {
    const bool by_turns = of_q_count == of_k_count;
    of_q = by_turns ? blockIdx.x % 2 == 0 : blockIdx.x < of_q_count;
    index = by_turns ? blockIdx.x / 2 : of_q ? blockIdx.x : blockIdx.x - of_q_count;
  }
};

// One block a row; a tensor with nothing to do has no rows here. The second read of a row comes from L1.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kRowThreads)
    norm_and_rotate(Projection<T> q, Projection<T> k, T* q_out, T* k_out, int64_t width, float eps, bool known_rstd) {
  constexpr int N = kUnit<T, kWhole>;
  const Turn turn(q.rows(), k.rows());
  const Projection<T> p = turn.of_q ? q : k;
  const TokenRow at(turn.index, p.batch, p.length);
  const T* x = p.x + at.row * width;
  T* out = (turn.of_q ? q_out : k_out) + at.row * width;

  float rstd = 1.0f;
  if (p.weight && known_rstd) {
    rstd = p.rstd[at.row];
  } else if (p.weight) {
    float sum = 0.0f;
    for (int64_t c = threadIdx.x * N; c < width; c += kRowThreads * N) {
      const Floats<N> values = read_unit<N, kWhole>(x, c, width);
#pragma unroll
      for (int i = 0; i < N; ++i) sum += values[i] * values[i];
    }
    rstd = 1.0f / sqrtf(block_reduce(sum) / static_cast<float>(width) + eps);
    if (p.rstd && threadIdx.x == 0) p.rstd[at.row] = rstd;
  }

  const int64_t angles = at.token * width;
  for (int64_t c = threadIdx.x * N; c < width; c += kRowThreads * N) {
    Floats<N> values = read_unit<N, kWhole>(x, c, width);
    if (p.weight) {
      const Floats<N> weight = read_unit<N, kWhole>(p.weight, c, width);
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] *= rstd * weight[i];
    }
    if (p.cos) rotate<false, kWhole>(values, p.cos + angles, p.sin + angles, c, width);
    write_unit<N, kWhole>(out, c, width, values);
  }
}

// A tensor's gradient and how its rows are cut into slabs, one a block, whose shares of dweight are summed apart. The
// number of slabs depends on the shape alone: enough for every chip, few enough for their sums to be small.
template <class T>
struct Adjoint {
  static constexpr int64_t kSlabs = 512;
  Projection<T> p;
  T* dx;            // (rows, D), in place
  float* partials;  // (slabs, D) or null
  int64_t slab_rows, slabs;

  Adjoint(const Projection<T>& p, T* dx)
      : p(p),
        dx(dx),
        partials(nullptr),
        slab_rows(std::max<int64_t>(1, divide_up(p.rows(), kSlabs))),
        slabs(p.plain() ? 0 : divide_up(p.rows(), slab_rows)) {}
};

// Threads keep to their own channels, so neither the sums nor dx in place need a barrier. The sums lie in shared memory
// unless a row is too wide for it (shared_sums).
template <class T, bool kWhole>
__global__ void __launch_bounds__(kRowThreads)
    norm_and_rotate_backward(Adjoint<T> q, Adjoint<T> k, int64_t width, bool shared_sums) {
  constexpr int N = kUnit<T, kWhole>;
  LTX_DYNAMIC_SHARED(float, shared);
  const Turn turn(q.slabs, k.slabs);
  const Adjoint<T> own = turn.of_q ? q : k;
  const Projection<T>& p = own.p;
  float* partials = own.partials ? own.partials + turn.index * width : nullptr;
  float* sums = partials && shared_sums ? shared : partials;
  if (sums) {
    for (int64_t c = threadIdx.x * N; c < width; c += kRowThreads * N)
      write_unit<N, false>(sums, c, width, Floats<N>{});
  }

  const int64_t begin = turn.index * own.slab_rows, end = min(p.rows(), begin + own.slab_rows);
  for (int64_t i = begin; i < end; ++i) {
    const TokenRow at(static_cast<uint32_t>(i), p.batch, p.length);
    const T* x = p.x + at.row * width;
    T* dx = own.dx + at.row * width;
    const int64_t angles = at.token * width;
    const auto gradient = [&](int64_t c) {
      Floats<N> values = read_unit<N, kWhole>(static_cast<const T*>(dx), c, width);
      if (p.cos) rotate<true, kWhole>(values, p.cos + angles, p.sin + angles, c, width);
      return values;
    };
    if (!p.weight) {
      for (int64_t c = threadIdx.x * N; c < width; c += kRowThreads * N)
        write_unit<N, kWhole>(dx, c, width, gradient(c));
      continue;
    }
    const float rstd = p.rstd[at.row];
    float sum = 0.0f;
    for (int64_t c = threadIdx.x * N; c < width; c += kRowThreads * N) {
      const Floats<N> g = gradient(c), values = read_unit<N, kWhole>(x, c, width);
      const Floats<N> weight = read_unit<N, kWhole>(p.weight, c, width);
      Floats<N> share;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        share[i] = g[i] * values[i] * rstd;
        sum += share[i] * weight[i];
      }
      if (sums) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          if (kWhole || c + i < width) sums[c + i] += share[i];
        }
      }
    }
    const float mean = block_reduce(sum) / static_cast<float>(width);
    for (int64_t c = threadIdx.x * N; c < width; c += kRowThreads * N) {
      Floats<N> g = gradient(c);
      const Floats<N> values = read_unit<N, kWhole>(x, c, width), weight = read_unit<N, kWhole>(p.weight, c, width);
#pragma unroll
      for (int i = 0; i < N; ++i) g[i] = rstd * (g[i] * weight[i] - values[i] * rstd * mean);
      write_unit<N, kWhole>(dx, c, width, g);
    }
  }
  if (sums && sums != partials) {
    for (int64_t c = threadIdx.x * N; c < width; c += kRowThreads * N)
      write_unit<N, false>(partials, c, width, read_unit<N, false>(static_cast<const float*>(sums), c, width));
  }
}

}  // namespace

template <class T>
Prepared<T> prepare(const Call& call, const Projection<T>& q, const Projection<T>& k, int64_t width, bool known_rstd) {
  Projection<T> left[2] = {q, k};
  T* out[2] = {};
  int64_t rows = 0;
  bool whole = true;
  for (int i = 0; i < 2; ++i) {
    Projection<T>& p = left[i];
    if (p.plain()) {
      p.batch = 0;
      continue;
    }
    out[i] = scratch<T>(call, i, p.rows() * width);
    rows += p.rows();
    whole = whole && whole_units(width, p.x, p.weight, p.cos, p.sin);
  }
  dispatch(whole, [&](auto is_whole) {
    LTX_LAUNCH(call, (norm_and_rotate<T, is_whole>), dim3(static_cast<uint32_t>(rows)), kRowThreads, 0, left[0],
               left[1], out[0], out[1], width, static_cast<float>(call.scalar(1)), known_rstd);
  });
  return {out[0] ? out[0] : q.x, out[1] ? out[1] : k.x};
}

template <class T>
void unprepare(const Call& call, const Projection<T>& q, const Projection<T>& k, int64_t width, T* dq, T* dk,
               float* dq_weight, float* dk_weight) {
  constexpr int64_t kMostShared = 48 << 10;
  Adjoint<T> of_q(q, dq), of_k(k, dk);
  const int64_t q_partials = dq_weight ? of_q.slabs : 0, k_partials = dk_weight ? of_k.slabs : 0;
  const bool summed = q_partials + k_partials > 0, shared = width * int64_t{sizeof(float)} <= kMostShared;
  if (summed) {
    float* partials = scratch<float>(call, 3, (q_partials + k_partials) * width);
    if (dq_weight) of_q.partials = partials;
    if (dk_weight) of_k.partials = partials + q_partials * width;
  }
  dispatch(whole_units(width, q.x, k.x, q.weight, k.weight, q.cos, q.sin, dq, dk), [&](auto whole) {
    LTX_LAUNCH(call, (norm_and_rotate_backward<T, whole>), dim3(static_cast<uint32_t>(of_q.slabs + of_k.slabs)),
               kRowThreads, summed && shared ? width * sizeof(float) : 16, of_q, of_k, width, shared);
  });
  if (dq_weight) sum_columns<float>(call, of_q.partials, q_partials, q_partials, width, dq_weight);
  if (dk_weight) sum_columns<float>(call, of_k.partials, k_partials, k_partials, width, dk_weight);
}

#define LTX_INSTANTIATE(T)                                                                              \
  template Prepared<T> prepare(const Call&, const Projection<T>&, const Projection<T>&, int64_t, bool); \
  template void unprepare(const Call&, const Projection<T>&, const Projection<T>&, int64_t, T*, T*, float*, float*);
LTX_INSTANTIATE(float)
LTX_INSTANTIATE(bf16)
#undef LTX_INSTANTIATE

}  // namespace ltx::cuda
