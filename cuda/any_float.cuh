// A tensor of either float type, known at run time: for operands that are small or not worth a kernel of their own.
#pragma once
#include "common.cuh"

namespace ltx::cuda {

struct AnyFloat {
  void* data;
  bool half;

  LTX_HD explicit operator bool() const { return data; }
  LTX_DEVICE float operator[](int64_t i) const {
    return half ? static_cast<float>(static_cast<const bf16*>(data)[i]) : static_cast<const float*>(data)[i];
  }
  LTX_DEVICE void set(int64_t i, float value) const {
    if (half) {
      static_cast<bf16*>(data)[i] = bf16(value);
    } else {
      static_cast<float*>(data)[i] = value;
    }
  }
};

// data null for an operand that was left out.
inline AnyFloat any_float(Operand operand) {
  if (!operand) return {nullptr, false};
  bool half = false;
  dispatch(operand, [&](auto tag) { half = std::is_same_v<decltype(tag), bf16>; });
  return {operand.data<void>(), half};
}

template <int N>
LTX_DEVICE Floats<N> load(AnyFloat tensor, int64_t i) {
  return tensor.half ? load<N>(static_cast<const bf16*>(tensor.data) + i)
                     : load<N>(static_cast<const float*>(tensor.data) + i);
}
template <int N>
LTX_DEVICE Floats<N> filled(float value) {
  Floats<N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) result[i] = value;
  return result;
}

}  // namespace ltx::cuda
