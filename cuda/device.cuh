// What kernels share on the device's side: 16-byte accesses, reductions over a warp and a block, activations.
#pragma once
#include "target.cuh"

namespace ltx::cuda {

constexpr int kWarp = 32;

LTX_DEVICE int64_t strided_begin() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
LTX_DEVICE int64_t strided_step() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// N elements in registers as floats; whole vectors are loaded and stored as one access (16 bytes when N = kVector<T>).
template <int N>
struct Floats {
  float v[N];
  LTX_DEVICE float& operator[](int i) { return v[i]; }
  LTX_DEVICE float operator[](int i) const { return v[i]; }
};

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

// N is a power of two; pointer is aligned to N elements or to 16 bytes, the widest access.
template <int N, class T>
LTX_DEVICE Floats<N> load(const T* pointer) {
  constexpr int kStep = N < kVector<T> ? N : kVector<T>;
  Floats<N> result;
#pragma unroll
  for (int i = 0; i < N; i += kStep) {
    const Pack<T, kStep> pack = *reinterpret_cast<const Pack<T, kStep>*>(pointer + i);
#pragma unroll
    for (int j = 0; j < kStep; ++j) result.v[i + j] = static_cast<float>(pack.v[j]);
  }
  return result;
}
template <int N, class T>
LTX_DEVICE void store(T* pointer, const Floats<N>& values) {
  constexpr int kStep = N < kVector<T> ? N : kVector<T>;
#pragma unroll
  for (int i = 0; i < N; i += kStep) {
    Pack<T, kStep> pack;
#pragma unroll
    for (int j = 0; j < kStep; ++j) pack.v[j] = T(values.v[i + j]);
    *reinterpret_cast<Pack<T, kStep>*>(pointer + i) = pack;
  }
}

struct Add {
  LTX_DEVICE float operator()(float a, float b) const { return a + b; }
};
struct Max {
  LTX_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

// The reduction of kLanes neighbouring lanes (a power of two), in all of them and always in the same order.
template <class Op = Add, int kLanes = kWarp>
LTX_DEVICE float warp_reduce(float value, Op op = {}) {
#pragma unroll
  for (int bits = kLanes / 2; bits > 0; bits /= 2) value = op(value, __shfl_xor_sync(0xFFFFFFFFu, value, bits));
  return value;
}

// The reduction over a block of whole warps, one-dimensional, in all its threads. All of them must come here; may be
// called again at once.
template <class Op = Add>
LTX_DEVICE float block_reduce(float value, float identity = 0.0f, Op op = {}) {
  LTX_SHARED(float, partial, [kWarp]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  value = warp_reduce(value, op);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  value = warp_reduce(lane < warps ? partial[lane] : identity, op);
  __syncthreads();  // partial may be written again
  return value;
}

}  // namespace ltx::cuda
