// Branch-free f32 functions that the compiler turns into vector code inside `#pragma omp simd` loops. Errors are within
// about 2 units in the last place; where sigmoid, SiLU, GELU or a derivative tends to zero, below 1e-30 or (GELU) where
// the rounding of the exponent's argument counts, only the absolute error is that small. Infinities give the limits,
// NaN gives NaN. The polynomials are minimax fits made for these intervals.
#pragma once
#include <cstdint>
#include <cstring>

namespace ltx::cpu {

#define LTX_INLINE inline __attribute__((always_inline))

LTX_INLINE float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
LTX_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// Comparisons in this order hand a NaN through.
LTX_INLINE float at_most(float x, float high) { return x > high ? high : x; }
LTX_INLINE float at_least(float x, float low) { return x < low ? low : x; }
LTX_INLINE float copy_sign(float magnitude, float sign) {
  return float_from_bits((bits_of(magnitude) & 0x7FFFFFFFu) | (bits_of(sign) & 0x80000000u));
}
// -x, with |x| counted as at most `bound`, NaN too. On the bits: GCC makes a comparison and a blend of every bound on a
// float, which keep one of the two AVX-512 ports busy.
LTX_INLINE float minus_within(float x, float bound) {
  const uint32_t magnitude = bits_of(x) & 0x7FFFFFFFu, most = bits_of(bound);
  return float_from_bits((magnitude < most ? magnitude : most) | (~bits_of(x) & 0x80000000u));
}
// y, or NaN where x is.
LTX_INLINE float unless_nan(float x, float y) { return x != x ? x : y; }

namespace vmath {
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2High = 0.693147182f, kLn2Low = -1.90465421e-9f;
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits

// x = n ln 2 + r with |r| <= ln 2 / 2: returns e^r - 1.
LTX_INLINE float reduced_expm1(float x, int32_t& n) {
  const float shifted = __builtin_fmaf(x, kLog2E, kRound);
  const float whole = shifted - kRound;
  n = static_cast<int32_t>(bits_of(shifted) - bits_of(kRound));
  float r = __builtin_fmaf(whole, -kLn2High, x);
  r = __builtin_fmaf(whole, -kLn2Low, r);
  float p = 1.394032035e-3f;
  p = __builtin_fmaf(p, r, 8.366576396e-3f);
  p = __builtin_fmaf(p, r, 4.166640714e-2f);
  p = __builtin_fmaf(p, r, 1.666654348e-1f);
  p = __builtin_fmaf(p, r, 0.5f);
  return __builtin_fmaf(p * r, r, r);
}
LTX_INLINE float power_of_two(int32_t n) { return float_from_bits(static_cast<uint32_t>(n + 127) << 23); }
}  // namespace vmath

// e^x. Two factors of 2^n, so that results up to infinity and down through the subnormals come out right.
LTX_INLINE float vexp(float x) {
  int32_t n;
  const float e = 1.0f + vmath::reduced_expm1(at_least(at_most(x, 89.0f), -104.0f), n);
  const int32_t half = n >> 1;
  return e * vmath::power_of_two(half) * vmath::power_of_two(n - half);
}

namespace vmath {
// 1 / x for 1 <= x < 2^120 without the divider, which takes longer than all of e^x: a guess from the exponent (12 %
// off), one step whose one-sided error is centred (0.8 %), two Newton steps.
LTX_INLINE float reciprocal(float x) {
  const float guess = float_from_bits(0x7EF311C7u - bits_of(x));
  float r = 1.0073f * guess * __builtin_fmaf(-x, guess, 2.0f);
  r = __builtin_fmaf(r, __builtin_fmaf(-x, r, 1.0f), r);
  return __builtin_fmaf(r, __builtin_fmaf(-x, r, 1.0f), r);
}
// e^-x and 1 / (1 + e^-x), both finite: |x| counts as at most 80, where the sigmoid is within 2e-35 of its limit. NaN
// is left to the caller.
LTX_INLINE float sigmoid_parts(float x, float& e) {
  int32_t n;
  const float m = 1.0f + reduced_expm1(minus_within(x, 80.0f), n);
  e = m * power_of_two(n);
  return reciprocal(1.0f + e);
}
}  // namespace vmath

LTX_INLINE float vsigmoid(float x) {
  float e;
  return unless_nan(x, vmath::sigmoid_parts(x, e));
}

// -t / (2 + t) with t = e^(-2|x|) - 1, which keeps its precision near zero.
LTX_INLINE float vtanh(float x) {
  int32_t n;
  const float e = vmath::reduced_expm1(at_least(-2.0f * float_from_bits(bits_of(x) & 0x7FFFFFFFu), -40.0f), n);
  const float scale = vmath::power_of_two(n);
  const float t = __builtin_fmaf(scale, e, scale - 1.0f);
  return copy_sign(t / (2.0f + t), x);
}

// log(1 + e^x) = max(x, 0) + log(1 + t) with t = e^-|x|, and log(1 + t) = 2 artanh(s) with s = t / (2 + t) <= 1/3: the
// series' next term is below 2e-9 of the first.
LTX_INLINE float vsoftplus(float x) {
  const float t = vexp(-float_from_bits(bits_of(x) & 0x7FFFFFFFu));
  const float s = t / (2.0f + t), s2 = s * s;
  float p = 1.0f / 15.0f;
  p = __builtin_fmaf(p, s2, 1.0f / 13.0f);
  p = __builtin_fmaf(p, s2, 1.0f / 11.0f);
  p = __builtin_fmaf(p, s2, 1.0f / 9.0f);
  p = __builtin_fmaf(p, s2, 1.0f / 7.0f);
  p = __builtin_fmaf(p, s2, 1.0f / 5.0f);
  p = __builtin_fmaf(p, s2, 1.0f / 3.0f);
  return at_least(x, 0.0f) + 2.0f * __builtin_fmaf(p * s2, s, s);
}

LTX_INLINE float vsilu(float x) {
  float e;
  return at_least(x, -80.0f) * vmath::sigmoid_parts(x, e);
}
LTX_INLINE float vsilu_grad(float x) {
  float e;
  const float s = vmath::sigmoid_parts(x, e);
  return unless_nan(x, s * __builtin_fmaf(-minus_within(x, 80.0f), e * s, 1.0f));
}

// x sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3): the same function as 0.5 x (1 + tanh u), without its
// cancellation for negative x.
LTX_INLINE float vgelu_tanh(float x) {
  const float u2 = 1.59576912f * x * __builtin_fmaf(0.044715f * x, x, 1.0f);
  float e;
  return at_least(x, -10.0f) * vmath::sigmoid_parts(u2, e);
}
LTX_INLINE float vgelu_tanh_grad(float given) {
  const float x = -minus_within(given, 10.0f);
  const float square = x * x;
  const float u2 = 1.59576912f * x * __builtin_fmaf(0.044715f, square, 1.0f);
  float e;
  const float s = vmath::sigmoid_parts(u2, e);
  const float slope = 1.59576912f * __builtin_fmaf(3.0f * 0.044715f, square, 1.0f);
  return unless_nan(given, s * __builtin_fmaf(x * (e * s), slope, 1.0f));
}

}  // namespace ltx::cpu
