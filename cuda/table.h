// The kernels of ops.def, with exceptions turned into the call's error text.
#pragma once
#include "../native/runtime/backend.h"
#include "context.h"

namespace ltx::cuda {
extern const LtxKernel kKernels[LTX_OP_COUNT];
// What a fault that is not 0 says.
const char* fault_message(uint32_t fault);
}  // namespace ltx::cuda
