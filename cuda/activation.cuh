// The functions of enums.h Unary and their derivatives. Within about 2 units in the last place, as on the CPU: the
// library's expf, tanhf and log1pf, not the hardware's approximations. Infinities give the limits, NaN gives NaN.
#pragma once
#include "../native/runtime/enums.h"
#include "device.cuh"

namespace ltx::cuda {

// Comparisons in this order hand a NaN through, fminf and fmaxf would not.
LTX_DEVICE float at_most(float x, float high) { return x > high ? high : x; }
LTX_DEVICE float at_least(float x, float low) { return x < low ? low : x; }

// 1 / (1 + e^-x) and e^-x, both finite: beyond 80 the sigmoid is within 2e-35 of its limit.
LTX_DEVICE float sigmoid_parts(float x, float& e) {
  e = expf(-at_least(at_most(x, 80.0f), -80.0f));
  return 1.0f / (1.0f + e);
}
LTX_DEVICE float sigmoid(float x) {
  float e;
  return sigmoid_parts(x, e);
}

LTX_DEVICE float silu(float x) { return at_least(x, -80.0f) * sigmoid(x); }
// s (1 + x (1 - s)), where 1 - s = e^-x s does not cancel.
LTX_DEVICE float silu_gradient(float x) {
  float e;
  const float s = sigmoid_parts(x, e);
  return s * fmaf(at_least(at_most(x, 80.0f), -80.0f), e * s, 1.0f);
}

// x sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3): the same function as 0.5 x (1 + tanh u), without its
// cancellation for negative x.
LTX_DEVICE float gelu_tanh(float x) {
  const float u2 = 1.59576912f * x * fmaf(0.044715f * x, x, 1.0f);
  return at_least(x, -10.0f) * sigmoid(u2);
}
LTX_DEVICE float gelu_tanh_gradient(float x) {
  x = at_least(at_most(x, 10.0f), -10.0f);
  const float square = x * x, u2 = 1.59576912f * x * fmaf(0.044715f, square, 1.0f);
  float e;
  const float s = sigmoid_parts(u2, e);
  return s * fmaf(x * (e * s), 1.59576912f * fmaf(3.0f * 0.044715f, square, 1.0f), 1.0f);
}

// x times the normal distribution's function, and its derivative; both keep their precision where they tend to 0.
LTX_DEVICE float normal_cdf(float x) { return 0.5f * erfcf(-0.70710678f * x); }
LTX_DEVICE float gelu(float x) { return at_least(x, -16.0f) * normal_cdf(x); }
LTX_DEVICE float gelu_gradient(float x) {
  const float c = at_least(at_most(x, 16.0f), -16.0f);
  return normal_cdf(x) + c * 0.39894228f * expf(-0.5f * c * c);
}

LTX_DEVICE float softplus(float x) { return at_least(x, 0.0f) + log1pf(expf(-fabsf(x))); }

// y[i] = f(y[i]). The choice is outside the loop, which is unrolled; kind must be the same for the whole warp to be
// cheap. lo and hi are the bounds of kClamp, lo is the slope of kLeakyRelu. kGelu is left to activate_any: its many
// registers would slow the norms, which never have it.
template <int N>
LTX_DEVICE void activate(int kind, Floats<N>& y, float lo = 0.0f, float hi = 0.0f) {
  const auto map = [&](auto f) {
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] = f(y[i]);
  };
  switch (kind) {
    case kSilu:
      return map([](float x) { return silu(x); });
    case kGeluTanh:
      return map([](float x) { return gelu_tanh(x); });
    case kSigmoid:
      return map([](float x) { return sigmoid(x); });
    case kExp:
      return map([](float x) { return expf(x); });
    case kSquare:
      return map([](float x) { return x * x; });
    case kAbs:
      return map([](float x) { return fabsf(x); });
    case kClamp:
      return map([=](float x) { return at_most(at_least(x, lo), hi); });
    case kSqrt:
      return map([](float x) { return sqrtf(x); });
    case kRelu:
      return map([](float x) { return at_least(x, 0.0f); });
    case kTanh:
      return map([](float x) { return tanhf(x); });
    case kLeakyRelu:
      return map([=](float x) { return x > 0.0f ? x : lo * x; });
    case kSoftplus:
      return map([](float x) { return softplus(x); });
    case kReciprocal:
      return map([](float x) { return 1.0f / x; });
    default:
      return;
  }
}

// d[i] *= f'(x[i]); kGelu as above.
template <int N>
LTX_DEVICE void activate_backward(int kind, const Floats<N>& x, Floats<N>& d, float lo = 0.0f, float hi = 0.0f) {
  const auto map = [&](auto f) {
#pragma unroll
    for (int i = 0; i < N; ++i) d[i] = f(x[i], d[i]);
  };
  switch (kind) {
    case kSilu:
      return map([](float v, float g) { return g * silu_gradient(v); });
    case kGeluTanh:
      return map([](float v, float g) { return g * gelu_tanh_gradient(v); });
    case kSigmoid:
      return map([](float v, float g) {
        const float s = sigmoid(v);
        return g * s * (1.0f - s);
      });
    case kExp:
      return map([](float v, float g) { return g * expf(v); });
    case kSquare:
      return map([](float v, float g) { return 2.0f * v * g; });
    case kAbs:  // v * 0 keeps a NaN
      return map([](float v, float g) { return v > 0.0f ? g : v < 0.0f ? -g : v * 0.0f; });
    case kClamp:
      return map([=](float v, float g) { return v < lo || v > hi ? 0.0f : g; });
    case kSqrt:
      return map([](float v, float g) { return g * 0.5f / sqrtf(v); });
    case kRelu:
      return map([](float v, float g) { return v > 0.0f ? g : 0.0f; });
    case kTanh:
      return map([](float v, float g) {
        const float t = tanhf(v);
        return g * (1.0f - t) * (1.0f + t);
      });
    case kLeakyRelu:
      return map([=](float v, float g) { return v > 0.0f ? g : lo * g; });
    case kSoftplus:
      return map([](float v, float g) { return g * sigmoid(v); });
    case kReciprocal:
      return map([](float v, float g) { return -g / (v * v); });
    default:
      return;
  }
}

// As activate and activate_backward, for every kind.
template <int N>
LTX_DEVICE void activate_any(int kind, Floats<N>& y, float lo = 0.0f, float hi = 0.0f) {
  if (kind != kGelu) return activate(kind, y, lo, hi);
#pragma unroll
  for (int i = 0; i < N; ++i) y[i] = gelu(y[i]);
}
template <int N>
LTX_DEVICE void activate_any_backward(int kind, const Floats<N>& x, Floats<N>& d, float lo = 0.0f, float hi = 0.0f) {
  if (kind != kGelu) return activate_backward(kind, x, d, lo, hi);
#pragma unroll
  for (int i = 0; i < N; ++i) d[i] *= gelu_gradient(x[i]);
}

}  // namespace ltx::cuda
