// Random numbers and the sinusoidal embedding of timesteps.
#include <algorithm>
#include <cmath>

#include "common.cuh"

// Behind target.cuh, which makes its functions ones of the device.
#include "../native/runtime/philox.h"

namespace ltx::cuda {
namespace {

struct Key {
  uint32_t seed_low, seed_high, step, purpose;
};

// A thread makes the four values of a Philox block. The bits are the CPU's: philox.h has no product beside a sum that
// the compiler could contract.
template <class T, bool kNormal>
__global__ void __launch_bounds__(kThreads) generate(T* y, int64_t count, Key key) {
  const int64_t blocks = (count + 3) / 4;
  for (int64_t b = strided_begin(); b < blocks; b += strided_step()) {
    uint32_t c0 = static_cast<uint32_t>(b), c1 = static_cast<uint32_t>(b >> 32), c2 = key.step, c3 = key.purpose;
    philox4x32(c0, c1, c2, c3, key.seed_low, key.seed_high);
    Floats<4> values;
    if constexpr (kNormal) {
      philox_normal(c0, c1, values[0], values[1]);
      philox_normal(c2, c3, values[2], values[3]);
    } else {
      values = {philox_uniform(c0), philox_uniform(c1), philox_uniform(c2), philox_uniform(c3)};
    }
    T* out = y + 4 * b;
    if (4 * b + 4 <= count && reinterpret_cast<uintptr_t>(y) % (4 * sizeof(T)) == 0) {
      store(out, values);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (4 * b + j < count) out[j] = T(values[j]);
      }
    }
  }
}

template <bool kNormal>
void generate_into(const Call& call) {
  const Operand y = call[0];
  const uint64_t seed = static_cast<uint64_t>(call.scalar(0));
  const Key key{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(call.integer(1)),
                static_cast<uint32_t>(call.integer(2))};
  dispatch(y, [&](auto tag) {
    using T = decltype(tag);
    LTX_LAUNCH(call, (generate<T, kNormal>), grid_for(divide_up(y.size(), 4)), kThreads, 0, y.data<T>(), y.size(), key);
  });
}

// Angles are reduced in double, in quarter turns: for timesteps up to 1000 and beyond the error is that of one f32
// rounding, which the difference of two close embeddings needs. The rates come from the host, by value: a power in
// double would cost the GPU more than all the rest, and they are the CPU's to the bit.
constexpr int kMostRates = 256;
struct Rates {
  int64_t half, first;  // of all rates; these are first .. first + count
  int count;
  double quarters[kMostRates];  // quarter turns a unit of t
};

LTX_DEVICE void embed(float t, double rate, float& cosine, float& sine) {
  const double angle = t * rate, nearest = floor(angle + 0.5);
  sincos_quarters(static_cast<int32_t>(nearest), static_cast<float>(angle - nearest), cosine, sine);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sinusoid_rows(const float* t, T* y, int64_t rows, int64_t columns, Rates rates) {
  for (int64_t i = strided_begin(); i < rows * rates.count; i += strided_step()) {
    const int k = static_cast<int>(i % rates.count);
    const int64_t row = i / rates.count;
    float cosine, sine;
    embed(t[row], rates.quarters[k], cosine, sine);
    T* out = y + row * columns;
    out[rates.first + k] = T(cosine);
    out[rates.half + rates.first + k] = T(sine);
    if (k == 0 && columns % 2) out[columns - 1] = T(0.0f);
  }
}

// A warp a row. dt has the sum of the rates before.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sinusoid_rows_backward(const float* t, const T* dy, float* dt, int64_t rows, int64_t columns, Rates rates) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = strided_begin() / kWarp;
  if (row >= rows) return;  // the whole warp
  const float time = t[row];
  const T* d = dy + row * columns + rates.first;
  float sum = 0.0f;
  for (int k = lane; k < rates.count; k += kWarp) {
    float cosine, sine;
    embed(time, rates.quarters[k], cosine, sine);
    const float frequency = static_cast<float>(rates.quarters[k] * 1.57079632679489661923);
    sum += frequency * (cosine * static_cast<float>(d[rates.half + k]) - sine * static_cast<float>(d[k]));
  }
  sum = warp_reduce(sum);
  if (lane == 0) dt[row] = rates.first ? dt[row] + sum : sum;
}

// Calls body for all rates, as many at a time as go by value.
template <class Body>
void for_rates(int64_t columns, double max_period, Body&& body) {
  Rates rates{};
  rates.half = columns / 2;
  for (; rates.first < rates.half; rates.first += rates.count) {
    rates.count = static_cast<int>(std::min<int64_t>(kMostRates, rates.half - rates.first));
    for (int k = 0; k < rates.count; ++k) {
      const double part = static_cast<double>(rates.first + k) / static_cast<double>(rates.half);
      rates.quarters[k] = std::pow(max_period, -part) * 0.63661977236758134308;
    }
    body(rates);
  }
}

}  // namespace

void uniform(const Call& call) { generate_into<false>(call); }

void normal(const Call& call) { generate_into<true>(call); }

void sinusoid(const Call& call) {
  const Operand t = call[0], y = call[1];
  const int64_t rows = t.size(), columns = y.columns();
  if (!y.size()) return;
  dispatch(y, [&](auto tag) {
    using T = decltype(tag);
    for_rates(columns, call.scalar(0), [&](const Rates& rates) {
      LTX_LAUNCH(call, (sinusoid_rows<T>), grid_for(rows * rates.count), kThreads, 0, t.data<const float>(),
                 y.data<T>(), rows, columns, rates);
    });
  });
}

void sinusoid_backward(const Call& call) {
  const Operand t = call[0], dy = call[1], dt = call[2];
  const int64_t rows = t.size(), columns = dy.columns();
  if (columns < 2) return clear(context(call), dt.tensor->data, rows * sizeof(float));
  dispatch(dy, [&](auto tag) {
    using T = decltype(tag);
    for_rates(columns, call.scalar(0), [&](const Rates& rates) {
      LTX_LAUNCH(call, (sinusoid_rows_backward<T>), dim3(static_cast<uint32_t>(divide_up(rows * kWarp, kThreads))),
                 kThreads, 0, t.data<const float>(), dy.data<const T>(), dt.data<float>(), rows, columns, rates);
    });
  });
}

}  // namespace ltx::cuda
