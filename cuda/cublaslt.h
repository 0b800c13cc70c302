// cuBLASLt, opened at run time: LTX_CUBLASLT, the system's library, or a pip nvidia-cublas folder; version 13 or 12.
#pragma once
#include <cstddef>

namespace ltx::cuda {

// Opens the library once for the process; false with the reason (what was tried) when none can be used.
bool open_cublaslt(char* reason, size_t size);
// As cublasLtGetVersion gives it, e.g. 130101.
size_t cublaslt_version();

}  // namespace ltx::cuda
