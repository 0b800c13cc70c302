// gemm.h in plain loops. It refuses what cuBLASLt refuses, so that the callers' other ways are tested too.
#include "../gemm.h"

#include <cmath>
#include <vector>

#include "../common.cuh"
#include "in_order.h"

namespace ltx::cuda {
namespace {

float read(const void* data, LtxDtype dtype, int64_t i) {
  return dtype == LTX_F32 ? static_cast<const float*>(data)[i] : static_cast<float>(static_cast<const bf16*>(data)[i]);
}
void write(void* data, LtxDtype dtype, int64_t i, float value) {
  if (dtype == LTX_F32) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<bf16*>(data)[i] = bf16(value);
  }
}

float gelu(float x) { return 0.5f * x * (1.0f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x))); }

void multiply(const Gemm& p) {
  std::vector<float> row(p.n);
  for (int64_t i = 0; i < p.m; ++i) {
    row.assign(p.n, 0.0f);
    float total = 0.0f;
    for (int64_t l = 0; l < p.k; ++l) {
      const float a = read(p.a, p.operands, p.transpose_a ? l * p.m + i : i * p.k + l);
      total += a;
      for (int64_t j = 0; j < p.n; ++j) row[j] += a * read(p.b, p.operands, p.transpose_b ? j * p.k + l : l * p.n + j);
    }
    if (p.epilogue == Epilogue::kBiasGradient) write(p.bias, p.result, i, total);
    for (int64_t j = 0; j < p.n; ++j) {
      float value = row[j];
      if (p.epilogue == Epilogue::kBias || p.epilogue == Epilogue::kGeluBias) value += read(p.bias, p.result, j);
      if (p.epilogue == Epilogue::kGelu || p.epilogue == Epilogue::kGeluBias) {
        if (p.pre) write(p.pre, p.result, i * p.n + j, value);
        value = gelu(value);
      }
      if (p.accumulate) value += read(p.y, p.result, i * p.n + j);
      write(p.y, p.result, i * p.n + j, value);
    }
  }
}

}  // namespace

// The leading dimension of what stands before GELU must be a multiple of 8.
bool gemm_supports(const Call&, const Gemm& problem) { return !problem.pre || problem.n % 8 == 0; }

void gemm(const Call& call, const Gemm& problem) {
  in_order(context(call), "gemm", [problem] { multiply(problem); });
}

}  // namespace ltx::cuda
