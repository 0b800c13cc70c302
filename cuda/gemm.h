// Matrix products: cuBLASLt on a GPU (cublaslt.cu), plain loops in the emulator (emulator/gemm.cc).
#pragma once
#include "../native/runtime/call.h"

namespace ltx::cuda {

enum class Epilogue {
  kNone,
  kBias,          // y += bias (n)
  kGelu,          // tanh GELU; what stands before it goes to pre (m, n), if that is given
  kGeluBias,      // the bias first
  kBiasGradient,  // bias (m) = sums of op(a) over k
};

// Row-major: y (m, n) = epilogue(op(a) (m, k) op(b) (k, n)) + (accumulate ? y : 0), summed in f32; op transposes where
// the flag is set: a is then stored as (k, m), b as (n, k). Rows lie close together. None of m, n, k is 0.
struct Gemm {
  int64_t m, n, k;
  const void* a;
  const void* b;
  void* y;
  LtxDtype operands, result;  // of a and b; of y, pre and bias
  bool transpose_a = false, transpose_b = false, accumulate = false;
  Epilogue epilogue = Epilogue::kNone;
  void* bias = nullptr;
  void* pre = nullptr;
};

// Whether gemm can do this problem with its epilogue: the caller needs a kernel of its own where it can't.
bool gemm_supports(const Call& call, const Gemm& problem);
// Throws with cuBLASLt's status when it refuses.
void gemm(const Call& call, const Gemm& problem);

}  // namespace ltx::cuda
