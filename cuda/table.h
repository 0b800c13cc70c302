// The kernels of ops.def, with exceptions turned into the call's error text.
#pragma once
#include "../native/runtime/backend.h"
#include "context.h"

namespace ltx::cuda {
extern const LtxKernel kKernels[LTX_OP_COUNT];
}  // namespace ltx::cuda
