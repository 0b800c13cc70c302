// Ops over lists of parameters. The work is cut into blocks over all tensors together, so that threads share it evenly
// whatever the sizes, and the cuts (and so the results) don't depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "blocks.h"

namespace ltx::cpu {
namespace {

constexpr int64_t kListBlock = 4096;

class Blocks {
 public:
  // The tensors first .. first + count of a call.
  Blocks(const Call& call, int first, int count) : starts_(static_cast<size_t>(count) + 1) {
    for (int i = 0; i < count; ++i) {
      sizes_.push_back(call[first + i].size());
      starts_[i + 1] = starts_[i] + (sizes_[i] + kListBlock - 1) / kListBlock;
      elements_ += sizes_[i];
    }
  }
  int64_t count() const { return starts_.back(); }

  // Runs body(block, tensor, begin, n) for every block.
  template <class Body>
  void run(double cost, Body&& body) const {
    if (!elements_) return;
    const double per_block = cost * static_cast<double>(elements_) / static_cast<double>(count()) + 5;
    parallel(count(), per_block, [&](int64_t begin, int64_t end) {
      size_t tensor = std::upper_bound(starts_.begin(), starts_.end(), begin) - starts_.begin() - 1;
      for (int64_t b = begin; b < end; ++b) {
        while (b >= starts_[tensor + 1]) ++tensor;
        const int64_t offset = (b - starts_[tensor]) * kListBlock;
        body(b, static_cast<int>(tensor), offset, std::min(kListBlock, sizes_[tensor] - offset));
      }
    });
  }

 private:
  std::vector<int64_t> starts_, sizes_;
  int64_t elements_ = 0;
};

}  // namespace

void global_norm(const Call& call) {
  const Blocks blocks(call, 1, call.count() - 1);
  double* partial = scratch<double>(0, blocks.count());
  blocks.run(0.3, [&](int64_t block, int tensor, int64_t begin, int64_t n) {
    partial[block] = sum_piece(begin, begin + n, [&](int64_t i, int64_t count) {
      float buffer[kBlock];
      const float* x = load(call[1 + tensor], i, count, buffer);
      return sum_of(count, [=](int64_t j) { return x[j] * x[j]; });
    });
  });
  double sum = 0;
  for (int64_t b = 0; b < blocks.count(); ++b) sum += partial[b];
  const float norm = static_cast<float>(std::sqrt(sum));
  store(call[0], 0, 1, &norm);
}

void adam(const Call& call) {
  const double lr = call.scalar(0), max_norm = call.scalar(8);
  double clip = 1;
  if (call[0]) {
    const double norm = call[0].data<const float>()[0];
    if (!std::isfinite(norm)) return;  // the trainer reads the norm and reports it; the state stays as it was
    if (max_norm > 0) clip = std::min(1.0, max_norm / (norm + 1e-6));
  }
  const bool decoupled = call.scalar(5) != 0;
  const float scale = static_cast<float>(clip), coupled = decoupled ? 0.0f : static_cast<float>(call.scalar(4));
  const float keep = decoupled ? static_cast<float>(1 - lr * call.scalar(4)) : 1.0f;
  const float beta1 = static_cast<float>(call.scalar(1)), rest1 = static_cast<float>(1 - call.scalar(1));
  const float beta2 = static_cast<float>(call.scalar(2)), rest2 = static_cast<float>(1 - call.scalar(2));
  const float eps = static_cast<float>(call.scalar(3)), rate = static_cast<float>(lr / call.scalar(6));
  const float root = static_cast<float>(1 / std::sqrt(call.scalar(7)));

  const int count = (call.count() - 1) / 4;
  Blocks(call, 1, count).run(0.8, [&](int64_t, int tensor, int64_t begin, int64_t n) {
    float* param = call[1 + tensor].data<float>() + begin;
    const float* grad = call[1 + count + tensor].data<const float>() + begin;
    float* m = call[1 + 2 * count + tensor].data<float>() + begin;
    float* v = call[1 + 3 * count + tensor].data<float>() + begin;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const float g = grad[i] * scale + coupled * param[i];
      m[i] = beta1 * m[i] + rest1 * g;
      v[i] = beta2 * v[i] + rest2 * g * g;
      param[i] = keep * param[i] - rate * m[i] / (std::sqrt(v[i]) * root + eps);
    }
  });
}

void ema(const Call& call) {
  const float decay = static_cast<float>(call.scalar(0)), rest = static_cast<float>(1 - call.scalar(0));
  const int count = call.count() / 2;
  Blocks(call, 0, count).run(0.4, [&](int64_t, int tensor, int64_t begin, int64_t n) {
    float* average = call[tensor].data<float>() + begin;
    const float* value = call[count + tensor].data<const float>() + begin;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) average[i] = decay * average[i] + rest * value[i];
  });
}

}  // namespace ltx::cpu
