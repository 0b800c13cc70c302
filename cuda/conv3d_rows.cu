// What comes before and after a convolution: its geometry, rows of channels made whole, sums of parts.
#include <limits>

#include "conv3d.cuh"

namespace ltx::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads) pad_rows(const T* from, T* to, int64_t count, int channels, int padded) {
  // A thread a 16-byte piece of a padded row.
  const int pieces = padded / kVector<T>;
  for (int64_t i = strided_begin(); i < count * pieces; i += strided_step()) {
    const int64_t row = i / pieces;
    const int first = static_cast<int>(i - row * pieces) * kVector<T>;
    Pack<T, kVector<T>> pack;
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      pack.v[j] = first + j < channels ? from[row * channels + first + j] : T(0.0f);
    }
    *reinterpret_cast<Pack<T, kVector<T>>*>(to + row * padded + first) = pack;
  }
}

// kWidth neighbours of one row a thread.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) add_parts(const float* partials, int splits, int64_t count, int columns,
                                                      const float* bias, const T* residual, T* y) {
  for (int64_t i = strided_begin() * kWidth; i < count; i += strided_step() * kWidth) {
    Floats<kWidth> sum = load<kWidth>(partials + i);
    for (int part = 1; part < splits; ++part) {
      const Floats<kWidth> more = load<kWidth>(partials + part * count + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum[j] += more[j];
    }
    const uint32_t column = static_cast<uint32_t>(i) % static_cast<uint32_t>(columns);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (bias) sum[j] += bias[column + j];
    }
    if (residual) {
      const Floats<kWidth> more = load<kWidth>(residual + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum[j] += more[j];
    }
    store(y + i, sum);
  }
}

int positions_of(Operand x) {
  const int64_t count = x.dim(0) * x.dim(1) * x.dim(2) * x.dim(3);
  if (count > std::numeric_limits<int>::max() / 2) {
    throw std::runtime_error("more than 2^30 positions in one convolution: " + std::to_string(count));
  }
  return static_cast<int>(count);
}

}  // namespace

Conv3d conv3d_geometry(const Call& call, Operand x, Operand y, Operand w) {
  positions_of(x);
  positions_of(y);
  const auto dim = [](Operand operand, int i) { return static_cast<int>(operand.dim(i)); };
  const auto scalar = [&](int i) { return static_cast<int>(call.scalar(i)); };
  return {dim(x, 0), dim(x, 1), dim(x, 2), dim(x, 3), dim(x, 4),     dim(y, 1), dim(y, 2),
          dim(y, 3), dim(y, 4), dim(w, 1), dim(w, 2), dim(w, 3),     scalar(0), scalar(1),
          scalar(2), scalar(3), scalar(5), scalar(6), scalar(7) == 1};
}

template <class T>
const T* whole_rows(const Call& call, int slot, const T* rows, int64_t count, int channels, int padded) {
  if (channels == padded && aligned16(rows)) return rows;
  T* copy = scratch<T>(call, slot, count * padded);
  LTX_LAUNCH(call, pad_rows<T>, grid_for(count * padded / kVector<T>), kThreads, 0, rows, copy, count, channels,
             padded);
  return copy;
}
template const float* whole_rows(const Call&, int, const float*, int64_t, int, int);
template const bf16* whole_rows(const Call&, int, const bf16*, int64_t, int, int);

template <class T>
void sum_partials(const Call& call, const float* partials, int splits, int64_t count, int columns, const float* bias,
                  const T* residual, T* y) {
  if (columns % 4 == 0 && aligned16(y) && aligned16(residual)) {
    LTX_LAUNCH(call, (add_parts<T, 4>), grid_for(count / 4), kThreads, 0, partials, splits, count, columns, bias,
               residual, y);
  } else {
    LTX_LAUNCH(call, (add_parts<T, 1>), grid_for(count), kThreads, 0, partials, splits, count, columns, bias, residual,
               y);
  }
}
template void sum_partials(const Call&, const float*, int, int64_t, int, const float*, const float*, float*);
template void sum_partials(const Call&, const float*, int, int64_t, int, const float*, const bf16*, bf16*);

}  // namespace ltx::cuda
