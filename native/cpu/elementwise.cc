// Elementwise ops and broadcasts over rows.
#include <cmath>

#include "blocks.h"
#include "columns.h"
#include "unary.h"

namespace ltx::cpu {
namespace {

template <class F>
void map(const float* x, float* y, int64_t n, F f) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = f(x[i]);
}
template <class F>
void map(const float* a, const float* b, float* y, int64_t n, F f) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = f(a[i], b[i]);
}

// y = f(a, b) over n elements.
template <class F>
void binary(Operand a, Operand b, Operand y, F f) {
  for_blocks(y.size(), 0.3, [&](int64_t i, int64_t n) {
    float ba[kBlock], bb[kBlock], by[kBlock];
    float* out = target(y, i, by);
    map(load(a, i, n, ba), load(b, i, n, bb), out, n, f);
    store(y, i, n, out);
  });
}

// The normal distribution's function, with its relative precision where it tends to 0.
float normal_cdf(float x) { return 0.5f * std::erfc(-0.70710678f * x); }

double unary_cost(int kind) {
  switch (kind) {
    case kGelu:
      return 10.0;  // the C library's erfc, one at a time
    case kSilu:
    case kGeluTanh:
    case kSigmoid:
    case kExp:
    case kTanh:
    case kSoftplus:
      return 1.0;
    default:
      return 0.3;
  }
}

}  // namespace

void unary_block(int kind, const float* x, float* y, int64_t n, float lo, float hi) {
  switch (kind) {
    case kUnaryNone:
      return map(x, y, n, [](float v) { return v; });
    case kSilu:
      return map(x, y, n, [](float v) { return vsilu(v); });
    case kGeluTanh:
      return map(x, y, n, [](float v) { return vgelu_tanh(v); });
    case kSigmoid:
      return map(x, y, n, [](float v) { return vsigmoid(v); });
    case kExp:
      return map(x, y, n, [](float v) { return vexp(v); });
    case kSquare:
      return map(x, y, n, [](float v) { return v * v; });
    case kAbs:
      return map(x, y, n, [](float v) { return float_from_bits(bits_of(v) & 0x7FFFFFFFu); });
    case kClamp:
      return map(x, y, n, [=](float v) { return at_most(at_least(v, lo), hi); });
    case kSqrt:
      return map(x, y, n, [](float v) { return std::sqrt(v); });
    case kRelu:
      return map(x, y, n, [](float v) { return at_least(v, 0.0f); });
    case kTanh:
      return map(x, y, n, [](float v) { return vtanh(v); });
    case kLeakyRelu:
      return map(x, y, n, [=](float v) { return v > 0 ? v : lo * v; });
    case kSoftplus:
      return map(x, y, n, [](float v) { return vsoftplus(v); });
    case kReciprocal:
      return map(x, y, n, [](float v) { return 1.0f / v; });
    case kGelu:
      return map(x, y, n, [](float v) { return at_least(v, -16.0f) * normal_cdf(v); });
    default:
      return;
  }
}

void unary_grad_block(int kind, const float* x, const float* dy, float* dx, int64_t n, float lo, float hi) {
  switch (kind) {
    case kUnaryNone:
      return map(dy, dx, n, [](float d) { return d; });
    case kSilu:
      return map(x, dy, dx, n, [](float v, float d) { return d * vsilu_grad(v); });
    case kGeluTanh:
      return map(x, dy, dx, n, [](float v, float d) { return d * vgelu_tanh_grad(v); });
    case kSigmoid:
      return map(x, dy, dx, n, [](float v, float d) {
        const float s = vsigmoid(v);
        return d * s * (1.0f - s);
      });
    case kExp:
      return map(x, dy, dx, n, [](float v, float d) { return d * vexp(v); });
    case kSquare:
      return map(x, dy, dx, n, [](float v, float d) { return 2.0f * v * d; });
    case kAbs:
      return map(x, dy, dx, n, [](float v, float d) { return v > 0 ? d : v < 0 ? -d : v * 0.0f; });
    case kClamp:
      return map(x, dy, dx, n, [=](float v, float d) { return v < lo || v > hi ? 0.0f : d; });
    case kSqrt:
      return map(x, dy, dx, n, [](float v, float d) { return d * 0.5f / std::sqrt(v); });
    case kRelu:
      return map(x, dy, dx, n, [](float v, float d) { return v > 0 ? d : 0.0f; });
    case kTanh:
      return map(x, dy, dx, n, [](float v, float d) {
        const float t = vtanh(v);
        return d * (1.0f - t) * (1.0f + t);
      });
    case kLeakyRelu:
      return map(x, dy, dx, n, [=](float v, float d) { return v > 0 ? d : lo * d; });
    case kSoftplus:
      return map(x, dy, dx, n, [](float v, float d) { return d * vsigmoid(v); });
    case kReciprocal:
      return map(x, dy, dx, n, [](float v, float d) { return -d / (v * v); });
    case kGelu:
      return map(x, dy, dx, n, [](float v, float d) {
        const float c = at_least(at_most(v, 16.0f), -16.0f);
        return d * (normal_cdf(v) + c * 0.39894228f * std::exp(-0.5f * c * c));
      });
    default:
      return;
  }
}

void fill(const Call& call) {
  const Operand y = call[0];
  const double value = call.scalar(0);
  const auto set = [&](auto typed) {
    using T = decltype(typed);
    T* out = y.data<T>();
    for_blocks(y.size(), 0.2, [&](int64_t i, int64_t n) { std::fill_n(out + i, n, typed); });
  };
  switch (y.dtype()) {
    case LTX_F32:
      return set(static_cast<float>(value));
    case LTX_BF16:
      return set(bf16(static_cast<float>(value)).bits);
    case LTX_I32:
      return set(static_cast<int32_t>(value));
    case LTX_U8:
      return set(static_cast<uint8_t>(value));
  }
}

void cast(const Call& call) {
  const Operand x = call[0], y = call[1];
  const float scale = static_cast<float>(call.scalar(0)), shift = static_cast<float>(call.scalar(1));
  const bool plain = scale == 1.0f && shift == 0.0f;
  for_blocks(y.size(), 0.3, [&](int64_t i, int64_t n) {
    float bx[kBlock], by[kBlock];
    const float* in = load(x, i, n, bx);
    if (plain) return store(y, i, n, in);
    float* out = target(y, i, by);
    map(in, out, n, [=](float v) { return v * scale + shift; });
    store(y, i, n, out);
  });
}

void axpby(const Call& call) {
  const float alpha = static_cast<float>(call.scalar(0)), beta = static_cast<float>(call.scalar(1));
  binary(call[0], call[1], call[2], [=](float a, float b) { return alpha * a + beta * b; });
}

void mul(const Call& call) {
  const Operand a = call[0], b = call[1], y = call[2];
  if (b.size() != 1) return binary(a, b, y, [](float u, float v) { return u * v; });
  float buffer[1];
  const float factor = load(b, 0, 1, buffer)[0];
  for_blocks(y.size(), 0.3, [&](int64_t i, int64_t n) {
    float ba[kBlock], by[kBlock];
    float* out = target(y, i, by);
    map(load(a, i, n, ba), out, n, [=](float v) { return v * factor; });
    store(y, i, n, out);
  });
}

void dot(const Call& call) {
  const Operand a = call[0], b = call[1], y = call[2];
  sum_batches(
      1, a.size(), 0.3,
      [&](int64_t i, int64_t n) {
        float ba[kBlock], bb[kBlock];
        const float *pa = load(a, i, n, ba), *pb = load(b, i, n, bb);
        return sum_of(n, [=](int64_t j) { return pa[j] * pb[j]; });
      },
      [&](int64_t, double sum) {
        const float value = static_cast<float>(sum);
        store(y, 0, 1, &value);
      });
}

void unary(const Call& call) {
  const Operand x = call[0], y = call[1];
  const int kind = static_cast<int>(call.integer(0));
  const float lo = static_cast<float>(call.scalar(1)), hi = static_cast<float>(call.scalar(2));
  for_blocks(y.size(), unary_cost(kind), [&](int64_t i, int64_t n) {
    float bx[kBlock], by[kBlock];
    float* out = target(y, i, by);
    unary_block(kind, load(x, i, n, bx), out, n, lo, hi);
    store(y, i, n, out);
  });
}

void unary_backward(const Call& call) {
  const Operand x = call[0], dy = call[1], dx = call[2];
  const int kind = static_cast<int>(call.integer(0));
  const float lo = static_cast<float>(call.scalar(1)), hi = static_cast<float>(call.scalar(2));
  for_blocks(dx.size(), unary_cost(kind) + 0.2, [&](int64_t i, int64_t n) {
    float bx[kBlock], bdy[kBlock], bdx[kBlock];
    float* out = target(dx, i, bdx);
    unary_grad_block(kind, load(x, i, n, bx), load(dy, i, n, bdy), out, n, lo, hi);
    store(dx, i, n, out);
  });
}

void add_rows(const Call& call) {
  const Operand x = call[0], row = call[1], y = call[2];
  const int64_t columns = row.size(), total = y.size();
  if (!total) return;
  // The row is repeated up to the length of a block, so that short rows cost no more than long ones.
  const int64_t repeats = std::max<int64_t>(1, kBlock / columns), width = repeats * columns;
  float* tiled = scratch<float>(0, width);
  for (int64_t r = 0; r < repeats; ++r) {
    const float* values = load(row, 0, columns, tiled);
    if (values != tiled + r * columns) std::copy_n(values, columns, tiled + r * columns);
  }
  parallel((total + width - 1) / width, static_cast<double>(std::min(total, width)) * 0.3,
           [&](int64_t begin, int64_t end) {
             float bx[kBlock], by[kBlock];
             for (int64_t b = begin; b < end; ++b) {
               const int64_t stop = std::min(width, total - b * width);
               for (int64_t c = 0; c < stop; c += kBlock) {
                 const int64_t i = b * width + c, n = std::min(kBlock, stop - c);
                 float* out = target(y, i, by);
                 map(load(x, i, n, bx), tiled + c, out, n, [](float u, float v) { return u + v; });
                 store(y, i, n, out);
               }
             }
           });
}

void sum_rows(const Call& call) {
  const Operand x = call[0], y = call[1];
  const int64_t columns = x.columns(), rows = x.rows();
  zero(y);
  // Of a bias's gradient most cancels, so that the order of a sum in f32 would show.
  sum_columns<double>(
      rows, rows, columns, columns, 0.4, false, nullptr,
      [&](int64_t begin, int64_t end, double* sums) {
        float bx[kBlock];
        for (int64_t c = 0; c < columns; c += kBlock) {
          const int64_t n = std::min(kBlock, columns - c);
          double* sum = sums + c;
          for (int64_t r = begin; r < end; ++r) {
            const float* in = load(x, r * columns + c, n, bx);
#pragma omp simd
            for (int64_t j = 0; j < n; ++j) sum[j] += in[j];
          }
        }
      },
      [&](int64_t, const double* sums, double*) {
        float by[kBlock];
        for (int64_t c = 0; c < columns; c += kBlock) {
          const int64_t n = std::min(kBlock, columns - c);
          float* out = target(y, c, by);
          for (int64_t j = 0; j < n; ++j) out[j] = static_cast<float>(sums[c + j]);
          store(y, c, n, out);
        }
      });
}

void mix_rows(const Call& call) {
  const Operand a = call[0], b = call[1], sa = call[2], sb = call[3], y = call[4];
  const int64_t batch = y.dims() ? y.dim(0) : 1;
  if (!y.size()) return;
  const int64_t length = y.size() / batch, blocks = (length + kBlock - 1) / kBlock;
  parallel(batch * blocks, static_cast<double>(std::min(length, kBlock)) * 0.4, [&](int64_t begin, int64_t end) {
    float ba[kBlock], bb[kBlock], by[kBlock];
    for (int64_t k = begin; k < end; ++k) {
      const int64_t r = k / blocks, first = k % blocks * kBlock, i = r * length + first;
      const int64_t n = std::min(kBlock, length - first);
      const float alpha = sa ? sa.data<float>()[r] : 1.0f, beta = sb ? sb.data<float>()[r] : 1.0f;
      const float* in = load(a, i, n, ba);
      float* out = target(y, i, by);
      if (b) {
        map(in, load(b, i, n, bb), out, n, [=](float u, float v) { return alpha * u + beta * v; });
      } else {
        map(in, out, n, [=](float u) { return alpha * u; });
      }
      store(y, i, n, out);
    }
  });
}

}  // namespace ltx::cpu
