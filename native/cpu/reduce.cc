// Sums and distances per sample. x (B, ...), y (B).
#include "blocks.h"

namespace ltx::cpu {
namespace {

// dx[b, i] = f(x[b, i], other[b, i], scale * dy[b]); other may be x.
template <class F>
void backward(Operand x, Operand other, Operand dy, Operand dx, float scale, F f) {
  const int64_t batch = dy.size();
  if (!dx.size()) return;
  const int64_t length = dx.size() / batch, blocks = (length + kBlock - 1) / kBlock;
  parallel(batch * blocks, static_cast<double>(std::min(length, kBlock)) * 0.4, [&](int64_t begin, int64_t end) {
    float bx[kBlock], bo[kBlock], bdx[kBlock], bdy[1];
    for (int64_t k = begin; k < end; ++k) {
      const int64_t b = k / blocks, first = k % blocks * kBlock, i = b * length + first;
      const int64_t n = std::min(kBlock, length - first);
      const float d = scale * load(dy, b, 1, bdy)[0];
      const float* px = load(x, i, n, bx);
      const float* po = other.tensor == x.tensor ? px : load(other, i, n, bo);
      float* out = target(dx, i, bdx);
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) out[j] = f(px[j], po[j], d);
      store(dx, i, n, out);
    }
  });
}

// y[b] = scale * sum of f(x[b, i], other[b, i]).
template <class F>
void forward(Operand x, Operand other, Operand y, double scale, F f) {
  const int64_t batch = y.size();
  if (!batch) return;
  sum_batches(
      batch, x.size() / batch, 0.3,
      [&](int64_t i, int64_t n) {
        float bx[kBlock], bo[kBlock];
        const float* px = load(x, i, n, bx);
        const float* po = other.tensor == x.tensor ? px : load(other, i, n, bo);
        return sum_of(n, [=](int64_t j) { return f(px[j], po[j]); });
      },
      [&](int64_t b, double sum) {
        const float value = static_cast<float>(scale * sum);
        store(y, b, 1, &value);
      });
}

}  // namespace

void reduce(const Call& call) {
  const Operand x = call[0], y = call[1];
  if (call.integer(0) == kSum) return forward(x, x, y, call.scalar(1), [](float v, float) { return v; });
  forward(x, x, y, call.scalar(1), [](float v, float) { return v * v; });
}

void reduce_backward(const Call& call) {
  const Operand x = call[0], dy = call[1], dx = call[2];
  const float scale = static_cast<float>(call.scalar(1));
  if (call.integer(0) == kSum) return backward(x, x, dy, dx, scale, [](float, float, float d) { return d; });
  backward(x, x, dy, dx, scale, [](float v, float, float d) { return 2.0f * v * d; });
}

void pair_loss(const Call& call) {
  const Operand a = call[0], b = call[1], y = call[2];
  if (call.integer(0) == kL1) {
    return forward(a, b, y, call.scalar(1),
                   [](float u, float v) { return float_from_bits(bits_of(u - v) & 0x7FFFFFFFu); });
  }
  forward(a, b, y, call.scalar(1), [](float u, float v) { return (u - v) * (u - v); });
}

void pair_loss_backward(const Call& call) {
  const Operand a = call[0], b = call[1], dy = call[2], da = call[3];
  const float scale = static_cast<float>(call.scalar(1));
  if (call.integer(0) == kL1) {
    return backward(a, b, dy, da, scale, [](float u, float v, float d) { return u > v ? d : u < v ? -d : 0.0f; });
  }
  backward(a, b, dy, da, scale, [](float u, float v, float d) { return 2.0f * (u - v) * d; });
}

}  // namespace ltx::cpu
