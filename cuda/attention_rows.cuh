// Rows of D channels that rotations work on, in units that hold whole channel pairs.
#pragma once
#include <cstdint>
#include <type_traits>

#include "device.cuh"

namespace ltx::cuda {

constexpr int kRowThreads = 128;

// Channels of a unit: 16 bytes where rows allow that (kWhole), else a pair that is read and written by elements.
template <class T, bool kWhole>
inline constexpr int kUnit = kWhole ? kVector<T> : 2;

template <class... T>
bool whole_units(int64_t width, const T*... pointers) {
  const auto fits = [&](const auto* p) {
    return !p || (width % kVector<std::remove_cvref_t<decltype(*p)>> == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0);
  };
  return (fits(pointers) && ...);
}

// The index-th row of (batch, length) rows when they are visited token by token, all samples' rows of one before those
// of the next: they read the same rows of cos and sin, which are larger than their own.
struct TokenRow {
  int64_t token, row;
  LTX_DEVICE TokenRow(uint32_t index, uint32_t batch, int64_t length)
      : token(index / batch), row(index % batch * length + token) {}
};

// N channels from channel c on, zeros behind the row's end.
template <int N, bool kWhole, class T>
LTX_DEVICE Floats<N> read_unit(const T* row, int64_t c, int64_t width) {
  Floats<N> result;
  if constexpr (kWhole) {
    constexpr int kStep = N < kVector<T> ? N : kVector<T>;
#pragma unroll
    for (int i = 0; i < N; i += kStep) {
      const Floats<kStep> part = load<kStep>(row + c + i);
#pragma unroll
      for (int j = 0; j < kStep; ++j) result[i + j] = part[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) result[i] = c + i < width ? static_cast<float>(row[c + i]) : 0.0f;
  }
  return result;
}
template <int N, bool kWhole, class T>
LTX_DEVICE void write_unit(T* row, int64_t c, int64_t width, const Floats<N>& values) {
  if constexpr (kWhole) {
    store(row + c, values);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (c + i < width) row[c + i] = T(values[i]);
    }
  }
}

// (a, b) to (a cos - b sin, b cos + a sin) on channel pairs, each channel with an angle of its own; or the adjoint.
// With fmaf spelled out no compiler decides which products are fused.
template <bool kAdjoint, bool kWhole, int N>
LTX_DEVICE void rotate(Floats<N>& x, const float* cos, const float* sin, int64_t c, int64_t width) {
  const Floats<N> cosine = read_unit<N, kWhole>(cos, c, width), sine = read_unit<N, kWhole>(sin, c, width);
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    const float a = x[i], b = x[i + 1];
    x[i] = fmaf(a, cosine[i], kAdjoint ? b * sine[i + 1] : -b * sine[i]);
    x[i + 1] = fmaf(b, cosine[i + 1], kAdjoint ? -a * sine[i] : a * sine[i + 1]);
  }
}

}  // namespace ltx::cuda
