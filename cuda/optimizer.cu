// Ops over lists of parameters. The work is cut into blocks over all tensors together; pointers go to the kernels by
// value, as many tensors at a time as fit, so that a list takes a few launches and no memory.
#include <algorithm>
#include <cmath>

#include "weights.cuh"

namespace ltx::cuda {
namespace {

constexpr int kListBlock = 4096;  // elements a block of threads

// Some tensors of kLists lists of the same shapes (and their bf16 copies): below 4 KB, the most that kernels take on
// every driver.
template <int kLists>
struct Tensors {
  static constexpr int kMost = 3600 / ((kLists + 1) * 8 + 13);
  void* data[kLists][kMost];
  bf16* copy[kMost];  // NULL where there is none
  int64_t size[kMost];
  uint32_t end[kMost];  // the block behind the last one
  bool aligned[kMost];  // to 16 bytes
  int count;
};

// A block's part of the lists.
struct Part {
  int tensor;
  int64_t begin, size;  // size at most kListBlock
};

template <int kLists>
LTX_DEVICE Part part_of(const Tensors<kLists>& tensors, uint32_t block) {
  int low = 0, high = tensors.count - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (block < tensors.end[middle]) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const uint32_t first = low ? tensors.end[low - 1] : 0;
  const int64_t begin = static_cast<int64_t>(block - first) * kListBlock;
  return {low, begin, min(tensors.size[low] - begin, static_cast<int64_t>(kListBlock))};
}

// Calls run(tensors, blocks) for all tensors of that dtype in the lists that stand one behind the other from operand
// `first` on.
template <int kLists, class Run>
void for_lists(const Call& call, int first, LtxDtype dtype, bool with_copies, Run&& run) {
  const int count = (call.count() - first) / kLists;
  Tensors<kLists> tensors;
  tensors.count = 0;
  const auto flush = [&] {
    if (tensors.count) run(tensors, tensors.end[tensors.count - 1]);
    tensors.count = 0;
  };
  for (int i = 0; i < count; ++i) {
    const Operand leader = call[first + i];
    const int64_t size = leader.size();
    if (!size || leader.dtype() != dtype) continue;
    const int k = tensors.count;
    tensors.aligned[k] = true;
    for (int list = 0; list < kLists; ++list) {
      tensors.data[list][k] = call[first + list * count + i].tensor->data;
      tensors.aligned[k] &= aligned16(tensors.data[list][k]);
    }
    tensors.copy[k] = with_copies ? copy_to_write(leader) : nullptr;
    tensors.size[k] = size;
    tensors.end[k] = static_cast<uint32_t>((k ? tensors.end[k - 1] : 0) + divide_up(size, kListBlock));
    if (++tensors.count == Tensors<kLists>::kMost) flush();
  }
  flush();
}

// --- global norm

// partial[block] = the sum of squares of the block's part.
template <class T>
__global__ void __launch_bounds__(kThreads) sum_squares(Tensors<1> tensors, float* partial) {
  const Part part = part_of(tensors, blockIdx.x);
  const T* x = static_cast<const T*>(tensors.data[0][part.tensor]) + part.begin;
  float sum = 0.0f;
  if (tensors.aligned[part.tensor] && part.size == kListBlock) {
    constexpr int N = kVector<T>;
#pragma unroll
    for (int k = 0; k < kListBlock / kThreads / N; ++k) {
      const Floats<N> values = load<N>(x + (k * kThreads + threadIdx.x) * N);
#pragma unroll
      for (int j = 0; j < N; ++j) sum += values[j] * values[j];
    }
  } else {
    for (int i = threadIdx.x; i < part.size; i += kThreads) {
      const float value = x[i];
      sum += value * value;
    }
  }
  sum = block_reduce(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) root_of_sum(const float* partial, int64_t count, float* norm) {
  LTX_SHARED(double, sums, [kThreads]);
  double own = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) own += partial[i];
  sums[threadIdx.x] = own;
  for (uint32_t half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(sums[0]));
}

// --- updates

// Runs f(x) for every element of the block's part, x[l] being that of list l. All lists but the second, which is only
// read, are written back, and the first one's bf16 copy with them.
template <int kLists, class F>
LTX_DEVICE void update(const Tensors<kLists>& tensors, const Part& part, const F& f) {
  float* list[kLists];
#pragma unroll
  for (int l = 0; l < kLists; ++l) list[l] = static_cast<float*>(tensors.data[l][part.tensor]) + part.begin;
  bf16* copy = tensors.copy[part.tensor] ? tensors.copy[part.tensor] + part.begin : nullptr;
  const int size = static_cast<int>(part.size), vectors = tensors.aligned[part.tensor] ? size / 4 : 0;
  for (int k = threadIdx.x; k < vectors; k += kThreads) {
    Floats<4> x[kLists];
#pragma unroll
    for (int l = 0; l < kLists; ++l) x[l] = load<4>(list[l] + 4 * k);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float own[kLists];
#pragma unroll
      for (int l = 0; l < kLists; ++l) own[l] = x[l][j];
      f(own);
#pragma unroll
      for (int l = 0; l < kLists; ++l) x[l][j] = own[l];
    }
#pragma unroll
    for (int l = 0; l < kLists; ++l) {
      if (l != 1) store(list[l] + 4 * k, x[l]);
    }
    if (copy) store(copy + 4 * k, x[0]);
  }
  for (int i = 4 * vectors + threadIdx.x; i < size; i += kThreads) {
    float own[kLists];
#pragma unroll
    for (int l = 0; l < kLists; ++l) own[l] = list[l][i];
    f(own);
#pragma unroll
    for (int l = 0; l < kLists; ++l) {
      if (l != 1) list[l][i] = own[l];
    }
    if (copy) copy[i] = bf16(own[0]);
  }
}

struct Adam {
  float scale, coupled, keep, beta1, rest1, beta2, rest2, eps, rate, root;
  LTX_DEVICE void operator()(float (&x)[4]) const {
    float &param = x[0], &m = x[2], &v = x[3];
    const float g = x[1] * scale + coupled * param;
    m = beta1 * m + rest1 * g;
    v = beta2 * v + rest2 * g * g;
    param = keep * param - rate * m / (sqrtf(v) * root + eps);
  }
};

__global__ void __launch_bounds__(kThreads)
    adam_step(Tensors<4> tensors, Adam adam, const float* norm, float max_norm) {
  const Part part = part_of(tensors, blockIdx.x);
  if (norm) {
    const float length = *norm;
    if (!isfinite(length)) {
      // The trainer reads the norm and reports it; the state stays as it was. But the copy counts as written now.
      if (!tensors.copy[part.tensor]) return;
      return update(tensors, part, [](float(&)[4]) {});
    }
    if (max_norm > 0.0f) adam.scale = fminf(1.0f, max_norm / (length + 1e-6f));
  }
  update(tensors, part, adam);
}

struct Average {
  float decay, rest;
  LTX_DEVICE void operator()(float (&x)[2]) const { x[0] = decay * x[0] + rest * x[1]; }
};

__global__ void __launch_bounds__(kThreads) move_averages(Tensors<2> tensors, Average average) {
  update(tensors, part_of(tensors, blockIdx.x), average);
}

}  // namespace

void global_norm(const Call& call) {
  int64_t count = 0;
  for (int i = 1; i < call.count(); ++i) count += divide_up(call[i].size(), kListBlock);
  float* partial = scratch<float>(call, 0, count);
  float* next = partial;
  const auto add = [&](auto tag, LtxDtype dtype) {
    using T = decltype(tag);
    for_lists<1>(call, 1, dtype, false, [&](const Tensors<1>& tensors, uint32_t blocks) {
      LTX_LAUNCH(call, (sum_squares<T>), dim3(blocks), kThreads, 0, tensors, next);
      next += blocks;
    });
  };
  add(float{}, LTX_F32);
  add(bf16{}, LTX_BF16);
  LTX_LAUNCH(call, root_of_sum, dim3(1), kThreads, 0, partial, count, call[0].data<float>());
}

void adam(const Call& call) {
  const double lr = call.scalar(0), decay = call.scalar(4);
  const bool decoupled = call.scalar(5) != 0;
  const Adam adam{
      .scale = 1.0f,
      .coupled = decoupled ? 0.0f : static_cast<float>(decay),
      .keep = decoupled ? static_cast<float>(1 - lr * decay) : 1.0f,
      .beta1 = static_cast<float>(call.scalar(1)),
      .rest1 = static_cast<float>(1 - call.scalar(1)),
      .beta2 = static_cast<float>(call.scalar(2)),
      .rest2 = static_cast<float>(1 - call.scalar(2)),
      .eps = static_cast<float>(call.scalar(3)),
      .rate = static_cast<float>(lr / call.scalar(6)),
      .root = static_cast<float>(1 / std::sqrt(call.scalar(7))),
  };
  const float* norm = data<const float>(call[0]);
  const float max_norm = static_cast<float>(call.scalar(8));
  for_lists<4>(call, 1, LTX_F32, true, [&](const Tensors<4>& tensors, uint32_t blocks) {
    LTX_LAUNCH(call, adam_step, dim3(blocks), kThreads, 0, tensors, adam, norm, max_norm);
  });
}

void ema(const Call& call) {
  const Average average{static_cast<float>(call.scalar(0)), static_cast<float>(1 - call.scalar(0))};
  for_lists<2>(call, 0, LTX_F32, true, [&](const Tensors<2>& tensors, uint32_t blocks) {
    LTX_LAUNCH(call, move_averages, dim3(blocks), kThreads, 0, tensors, average);
  });
}

}  // namespace ltx::cuda
