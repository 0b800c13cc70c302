// One value a sample from all its elements, and back: tensors of (batch, length). Sums are made in an order that
// depends on the shape alone: threads add up chains of at most kChain steps, blocks add up their threads in a tree.
#pragma once
#include <algorithm>

#include "any_float.cuh"

namespace ltx::cuda {

// Each sample is cut into parts of `chunk` elements, a multiple of the block's step.
struct Parts {
  static constexpr int64_t kChain = 16, kBlocks = 1024;
  int64_t length, chunk, parts;

  Parts(int64_t batch, int64_t length, int width) : length(length) {
    const int64_t step = static_cast<int64_t>(kThreads) * width;
    const int64_t wanted = divide_up(batch * length, kBlocks * step);
    chunk = step * std::clamp<int64_t>(wanted, 1, kChain);
    parts = std::max<int64_t>(1, divide_up(length, chunk));
  }
  // Calls body(sample, i) for each of the thread's steps; i is the first of V elements inside the sample.
  template <int V, class Body>
  LTX_DEVICE void visit(Body&& body) const {
    const int64_t sample = blockIdx.x / parts, first = blockIdx.x % parts * chunk;
    const int64_t end = min(length, first + chunk);
#pragma unroll 4
    for (int64_t i = first + threadIdx.x * V; i < end; i += kThreads * V) body(sample, i);
  }
};

template <int V, class Term>
__global__ void __launch_bounds__(kThreads) sum_parts(Parts p, Term term, float* sums) {
  float sum = 0.0f;
  p.visit<V>([&](int64_t sample, int64_t i) { sum += term(sample, i); });
  sum = block_reduce(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

template <class Y>
__global__ void __launch_bounds__(kThreads) finish_parts(const float* sums, int64_t parts, float scale, Y y) {
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < parts; i += kThreads) sum += sums[blockIdx.x * parts + i];
  sum = block_reduce(sum);
  if (threadIdx.x == 0) y.set(blockIdx.x, scale * sum);
}

// y (batch) = scale * sum of term(sample, i), the sum of elements i .. i + V of a sample; V divides length. Uses
// scratch slot 0.
template <int V, class Term>
void sum_samples(const Call& call, int64_t batch, int64_t length, double scale, AnyFloat y, const Term& term) {
  const Parts p(batch, length, V);
  float* sums = scratch<float>(call, 0, batch * p.parts);
  LTX_LAUNCH(call, (sum_parts<V, Term>), dim3(static_cast<uint32_t>(batch * p.parts)), dim3(kThreads), 0, p, term,
             sums);
  LTX_LAUNCH(call, finish_parts<AnyFloat>, dim3(static_cast<uint32_t>(batch)), dim3(kThreads), 0, sums, p.parts,
             static_cast<float>(scale), y);
}

template <int V, class Body>
__global__ void __launch_bounds__(kThreads) visit_parts(Parts p, Body body) {
  p.visit<V>(body);
}

// Calls body(sample, i) for each V elements of every sample.
template <int V, class Body>
void visit_samples(const Call& call, int64_t batch, int64_t length, const Body& body) {
  if (!length) return;
  const Parts p(batch, length, V);
  LTX_LAUNCH(call, (visit_parts<V, Body>), dim3(static_cast<uint32_t>(batch * p.parts)), dim3(kThreads), 0, p, body);
}

}  // namespace ltx::cuda
