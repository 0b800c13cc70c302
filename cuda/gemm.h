// Matrix products: cuBLASLt on a GPU (cublaslt.cc), plain loops in the emulator (emulator/gemm.cc).
#pragma once
#include "../native/runtime/call.h"

namespace ltx::cuda {

enum class Epilogue { kNone, kBias, kGelu, kGeluBias };

// Row-major: y (m, n) = epilogue(op(a) (m, k) op(b) (k, n)) + (accumulate ? y : 0), summed in f32. op is the transpose
// when its flag is set: a is then stored as (k, m), b as (n, k). Rows lie close together.
struct Gemm {
  int64_t m, n, k;
  const void* a;
  const void* b;
  void* y;
  LtxDtype a_dtype, b_dtype, y_dtype;  // a and b alike
  bool transpose_a = false, transpose_b = false, accumulate = false;
  Epilogue epilogue = Epilogue::kNone;
  const float* bias = nullptr;  // (n)
  void* pre = nullptr;          // with GELU (tanh): the values before it, (m, n) of y's dtype
};

// Whether gemm can do this epilogue for this problem; otherwise the caller adds a kernel of its own.
bool gemm_supports(const Call& call, const Gemm& problem);
// Throws with cuBLASLt's status when it refuses.
void gemm(const Call& call, const Gemm& problem);

}  // namespace ltx::cuda
