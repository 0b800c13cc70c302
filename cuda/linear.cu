// Linear layers: products by gemm.h, whatever its epilogues can't do by a pass of our own.
#include "activation.cuh"
#include "columns.cuh"
#include "common.cuh"
#include "gemm.h"
#include "weights.cuh"

namespace ltx::cuda {
namespace {

// A parameter as an operand of products in that dtype.
const void* operand(const Call& call, Operand parameter, LtxDtype dtype) {
  if (dtype == LTX_F32) return weights<float>(call, parameter);
  return weights<bf16>(call, parameter);
}

// pre (rows, columns) += bias (columns), y = act(pre); pre may be y. N divides columns.
template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    bias_activation(const float* bias, T* pre, T* y, int64_t size, int64_t columns, int act) {
  for (int64_t i = strided_begin() * N; i < size; i += strided_step() * N) {
    Floats<N> values = load<N>(pre + i);
    if (bias) {
      const int64_t column = i % columns;
#pragma unroll
      for (int j = 0; j < N; ++j) values[j] += bias[column + j];
    }
    if (pre != y) store(pre + i, values);
    activate_any(act, values);
    store(y + i, values);
  }
}

void apply(const Call& call, Operand bias, void* before, Operand y, int act) {
  dispatch(y, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = kVector<T>;
    T* pre = static_cast<T*>(before);
    T* result = y.data<T>();
    const float* b = data<const float>(bias);
    if (fits_vectors(y.columns(), N, pre, result)) {
      LTX_LAUNCH(call, (bias_activation<N, T>), grid_for(y.size() / N), kThreads, 0, b, pre, result, y.size(),
                 y.columns(), act);
    } else {
      LTX_LAUNCH(call, (bias_activation<1, T>), grid_for(y.size()), kThreads, 0, b, pre, result, y.size(), y.columns(),
                 act);
    }
  });
}

void sum_rows_of(const Call& call, Operand dy, Operand out) {
  dispatch(dy, [&](auto tag) {
    using T = decltype(tag);
    sum_columns(call, dy.data<const T>(), dy.rows(), dy.rows(), dy.columns(), out.data<float>());
  });
}

void zero(const Call& call, Operand y) {
  if (y) clear(context(call), y.data<void>(), static_cast<size_t>(y.size()) * (y.dtype() == LTX_BF16 ? 2 : 4));
}

}  // namespace

void linear(const Call& call) {
  const Operand x = call[0], w = call[1], bias = call[2], y = call[3], pre = call[4];
  const int act = static_cast<int>(call.integer(0));
  if (!y.size()) return;
  void* target = pre ? pre.data<void>() : y.data<void>();
  if (!x.size()) {
    clear(context(call), target, static_cast<size_t>(y.size()) * (y.dtype() == LTX_BF16 ? 2 : 4));
    return apply(call, bias, target, y, act);
  }
  Gemm problem{.m = y.rows(),
               .n = y.columns(),
               .k = x.columns(),
               .a = x.data<void>(),
               .b = operand(call, w, x.dtype()),
               .y = y.data<void>(),
               .operands = x.dtype(),
               .result = y.dtype(),
               .transpose_b = true};
  // A bias that is no parameter would need scratch memory that the weight may be in.
  const bool bias_fits = !bias || y.dtype() == LTX_F32 || bias.tensor->cache;
  if (bias_fits && (act == kGeluTanh || (act == kUnaryNone && !pre))) {
    Gemm fused = problem;
    if (act == kGeluTanh) {
      fused.epilogue = bias ? Epilogue::kGeluBias : Epilogue::kGelu;
      fused.pre = data<void>(pre);
    } else if (bias) {
      fused.epilogue = Epilogue::kBias;
    }
    if (bias) fused.bias = const_cast<void*>(operand(call, bias, y.dtype()));
    if (gemm_supports(call, fused)) return gemm(call, fused);
  }
  problem.y = target;
  gemm(call, problem);
  if (bias || pre || act != kUnaryNone) apply(call, bias, target, y, act);
}

void linear_backward_input(const Call& call) {
  const Operand dy = call[0], w = call[1], dx = call[2];
  const bool accumulate = call.integer(0) != 0;
  if (!dx.size()) return;
  if (!dy.size()) {
    if (!accumulate) zero(call, dx);
    return;
  }
  gemm(call, {.m = dx.rows(),
              .n = dx.columns(),
              .k = dy.columns(),
              .a = dy.data<void>(),
              .b = operand(call, w, dy.dtype()),
              .y = dx.data<void>(),
              .operands = dy.dtype(),
              .result = dx.dtype(),
              .accumulate = accumulate});
}

// dw (N, K) = dyᵀ x, dbias = the sums of dyᵀ over the rows of dy, which is what kBiasGradient sums.
void linear_backward_weight(const Call& call) {
  const Operand x = call[0], dy = call[1], dw = call[2], dbias = call[3];
  if (!x.size() || !dy.size()) {
    zero(call, dw);
    if (dbias && dy.size()) return sum_rows_of(call, dy, dbias);
    return zero(call, dbias);
  }
  Gemm problem{.m = dy.columns(),
               .n = x.columns(),
               .k = x.rows(),
               .a = dy.data<void>(),
               .b = x.data<void>(),
               .y = dw.data<void>(),
               .operands = x.dtype(),
               .result = LTX_F32,
               .transpose_a = true};
  if (dbias) {
    Gemm fused = problem;
    fused.epilogue = Epilogue::kBiasGradient;
    fused.bias = dbias.data<void>();
    if (gemm_supports(call, fused)) return gemm(call, fused);
  }
  gemm(call, problem);
  if (dbias) sum_rows_of(call, dy, dbias);
}

}  // namespace ltx::cuda
