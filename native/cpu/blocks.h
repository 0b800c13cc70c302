// Dtype-generic access in blocks: kernels compute in f32 on short blocks that stay in the first-level cache. An f32
// operand is used where it lies; others pass through a small buffer, which costs next to nothing beside main memory.
#pragma once
#include <algorithm>

#include "common.h"
#include "vmath.h"

namespace ltx::cpu {

constexpr int64_t kBlock = 1024;

// Elements offset .. offset + n as f32: in place, or converted into the buffer.
inline const float* load(Operand x, int64_t offset, int64_t n, float* buffer) {
  switch (x.dtype()) {
    case LTX_F32:
      return x.data<const float>() + offset;
    case LTX_BF16: {
      const uint16_t* bits = x.data<const uint16_t>() + offset;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) buffer[i] = float_from_bits(static_cast<uint32_t>(bits[i]) << 16);
      break;
    }
    case LTX_I32: {
      const int32_t* values = x.data<const int32_t>() + offset;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<float>(values[i]);
      break;
    }
    case LTX_U8: {
      const uint8_t* values = x.data<const uint8_t>() + offset;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<float>(values[i]);
      break;
    }
  }
  return buffer;
}

// Where to compute elements from offset on: in place, or the buffer; store() then writes them.
inline float* target(Operand y, int64_t offset, float* buffer) {
  return y.dtype() == LTX_F32 ? y.data<float>() + offset : buffer;
}

inline void store(Operand y, int64_t offset, int64_t n, const float* values) {
  if (y.dtype() == LTX_F32) {
    float* out = y.data<float>() + offset;
    if (out != values) std::memcpy(out, values, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  uint16_t* out = y.data<uint16_t>() + offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t u = bits_of(values[i]);
    const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
    out[i] = static_cast<uint16_t>((u & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
  }
}

inline void zero(Operand y) {
  if (y && y.size()) std::memset(y.tensor->data, 0, static_cast<size_t>(y.size()) * (y.dtype() == LTX_F32 ? 4 : 2));
}

// Runs body(begin, count) over [0, n) in blocks of at most kBlock; cost is in nanoseconds an element.
template <class Body>
void for_blocks(int64_t n, double cost, Body&& body) {
  parallel((n + kBlock - 1) / kBlock, static_cast<double>(std::min(n, kBlock)) * cost, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) body(b * kBlock, std::min(kBlock, n - b * kBlock));
  });
}

// Sum of f(i) over [0, n): f32 in two chains of vectors, for ranges of a few thousand.
template <class F>
LTX_INLINE float sum_of(int64_t n, F&& f) {
  const int64_t half = n / 2;
  float a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
  for (int64_t i = 0; i < half; ++i) {
    a += f(i);
    b += f(i + half);
  }
  return n & 1 ? a + b + f(n - 1) : a + b;
}

// The sum over [0, n), in double, of body(begin, count), each call the f32 sum of one block. The pieces depend on n
// alone, so the result doesn't depend on the number of threads.
constexpr int64_t kPiece = 64 * kBlock;
template <class Body>
double sum_piece(int64_t begin, int64_t end, Body&& body) {
  double sum = 0;
  for (int64_t i = begin; i < end; i += kBlock) sum += body(i, std::min(kBlock, end - i));
  return sum;
}
// sums[b] = the sum over [b n, (b + 1) n) for b < batch.
template <class Body, class Finish>
void sum_batches(int64_t batch, int64_t n, double cost, Body&& body, Finish&& finish) {
  const int64_t pieces = std::max<int64_t>(1, (n + kPiece - 1) / kPiece);
  double* partial = scratch<double>(3, batch * pieces);
  parallel(batch * pieces, static_cast<double>(std::min(n, kPiece)) * cost + 5, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / pieces, first = i % pieces * kPiece;
      partial[i] = sum_piece(b * n + first, b * n + std::min(n, first + kPiece), body);
    }
  });
  for (int64_t b = 0; b < batch; ++b) {
    double sum = 0;
    for (int64_t i = 0; i < pieces; ++i) sum += partial[b * pieces + i];
    finish(b, sum);
  }
}

}  // namespace ltx::cpu
