// Random numbers and the sinusoidal embedding of timesteps.
#include <cmath>

#include "../runtime/philox.h"
#include "blocks.h"

namespace ltx::cpu {
namespace {

// y[i] = lane i % 4 of what make(words) gives for Philox block i / 4.
template <class Make>
void generate(const Call& call, double cost, Make make) {
  const Operand y = call[0];
  const uint64_t seed = static_cast<uint64_t>(call.scalar(0));
  const uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  const uint32_t step = static_cast<uint32_t>(call.integer(1)), purpose = static_cast<uint32_t>(call.integer(2));
  for_blocks(y.size(), cost, [&](int64_t i, int64_t n) {
    constexpr int64_t kLanes = kBlock / 4;
    alignas(64) uint32_t words[4][kLanes];
    alignas(64) float lanes[4][kLanes], values[kBlock];
    const uint64_t first = static_cast<uint64_t>(i / 4);
    const int64_t count = (n + 3) / 4;
    // kBlock / 4 divides 2^32: the counter's high word is the same throughout.
    const uint32_t low = static_cast<uint32_t>(first), high = static_cast<uint32_t>(first >> 32);
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      uint32_t c0 = low + static_cast<uint32_t>(j), c1 = high, c2 = step, c3 = purpose;
      philox4x32(c0, c1, c2, c3, k0, k1);
      words[0][j] = c0;
      words[1][j] = c1;
      words[2][j] = c2;
      words[3][j] = c3;
    }
    make(words[0], words[1], lanes[0], lanes[1], count);
    make(words[2], words[3], lanes[2], lanes[3], count);
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      for (int l = 0; l < 4; ++l) values[4 * j + l] = lanes[l][j];
    }
    store(y, i, n, values);
  });
}

// Angles are reduced in double, in quarter turns: for timesteps up to 1000 and beyond the error is that of one f32
// rounding, which the difference of two close embeddings needs.
struct Sinusoid {
  int64_t half;
  double* quarters;    // quarter turns a unit of t
  float* frequencies;  // radians a unit of t

  Sinusoid(int64_t dim, double max_period) : half(dim / 2) {
    quarters = scratch<double>(0, 2 * half);
    frequencies = reinterpret_cast<float*>(quarters + half);
    for (int64_t i = 0; i < half; ++i) {
      const double f = std::pow(max_period, -static_cast<double>(i) / static_cast<double>(half));
      quarters[i] = f * 0.63661977236758134308;
      frequencies[i] = static_cast<float>(f);
    }
  }
  void row(float t, float* cosine, float* sine) const {
    const double time = t;
    const double* rate = quarters;
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const double angle = time * rate[i], nearest = std::floor(angle + 0.5);
      sincos_quarters(static_cast<int32_t>(nearest), static_cast<float>(angle - nearest), cosine[i], sine[i]);
    }
  }
};

}  // namespace

void uniform(const Call& call) {
  generate(call, 1.0, [](const uint32_t* a, const uint32_t* b, float* u, float* v, int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      u[j] = philox_uniform(a[j]);
      v[j] = philox_uniform(b[j]);
    }
  });
}

void normal(const Call& call) {
  generate(call, 2.0, [](const uint32_t* a, const uint32_t* b, float* u, float* v, int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) philox_normal(a[j], b[j], u[j], v[j]);
  });
}

void sinusoid(const Call& call) {
  const Operand t = call[0], y = call[1];
  const int64_t dim = y.columns();
  if (!y.size()) return;
  const Sinusoid table(dim, call.scalar(0));
  float* space = scratch<float>(1, omp_get_max_threads() * dim);
  parallel(t.size(), static_cast<double>(dim) * 2, [&](int64_t begin, int64_t end) {
    float* buffer = space + omp_get_thread_num() * dim;
    buffer[dim - 1] = 0;  // stays when dim is odd
    for (int64_t r = begin; r < end; ++r) {
      table.row(t.data<const float>()[r], buffer, buffer + table.half);
      store(y, r * dim, dim, buffer);
    }
  });
}

void sinusoid_backward(const Call& call) {
  const Operand t = call[0], dy = call[1], dt = call[2];
  const int64_t dim = dy.columns();
  zero(dt);
  if (!dy.size()) return;
  const Sinusoid table(dim, call.scalar(0));
  float* space = scratch<float>(1, omp_get_max_threads() * 2 * dim);
  parallel(t.size(), static_cast<double>(dim) * 2, [&](int64_t begin, int64_t end) {
    const int64_t half = table.half;
    float* cosine = space + omp_get_thread_num() * 2 * dim;
    float *sine = cosine + half, *converted = cosine + dim;
    for (int64_t r = begin; r < end; ++r) {
      table.row(t.data<const float>()[r], cosine, sine);
      const float* d = load(dy, r * dim, dim, converted);
      const float* f = table.frequencies;
      const float sum = sum_of(half, [=](int64_t i) { return f[i] * (cosine[i] * d[half + i] - sine[i] * d[i]); });
      store(dt, r, 1, &sum);
    }
  });
}

}  // namespace ltx::cpu
