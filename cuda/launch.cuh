// Launches: LTX_LAUNCH(call, kernel, grid, block, dynamic shared bytes, arguments...). A kernel with commas in its
// template arguments stands in parentheses. A grid of nothing is nothing. Throws when the launch is refused.
#pragma once
#include <cstddef>

#include "../native/runtime/call.h"
#include "target.cuh"

#ifdef __CUDACC__
#include <stdexcept>
#include <string>

namespace ltx::cuda {

cudaStream_t stream(const ltx::Call& call);

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

template <class... Parameters, class... Arguments>
void launch(const ltx::Call& call, const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t dynamic_shared, const Arguments&... arguments) {
  if (static_cast<size_t>(grid.x) * grid.y * grid.z == 0) return;
  // Beyond 48 KB a kernel has to ask; the call is cheap and needs no memory of what was asked before.
  if (dynamic_shared > (48 << 10)) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(dynamic_shared)),
          name);
  }
  kernel<<<grid, block, dynamic_shared, stream(call)>>>(static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), name);
}

}  // namespace ltx::cuda
#else
#include <functional>

namespace ltx::cuda {

// Runs the kernel, or notes it when the context is recording. The kernel's address tells instances of a template apart.
void run_or_record(const ltx::Call& call, const char* name, const void* kernel, dim3 grid, dim3 block,
                   size_t dynamic_shared, std::function<void()> body);

template <class... Parameters, class... Arguments>
void launch(const ltx::Call& call, const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t dynamic_shared, const Arguments&... arguments) {
  run_or_record(call, name, reinterpret_cast<const void*>(kernel), grid, block, dynamic_shared,
                [kernel, arguments...] { kernel(static_cast<Parameters>(arguments)...); });
}

}  // namespace ltx::cuda
#endif

#define LTX_LAUNCH(call, kernel, grid, block, dynamic_shared, ...) \
  ::ltx::cuda::launch(call, #kernel, kernel, grid, block, dynamic_shared, ##__VA_ARGS__)
