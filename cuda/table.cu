#include <cstdio>

#include "common.cuh"
#include "table.h"

namespace ltx::cuda {
#define LTX_OP(name, operands, scalars) __attribute__((weak)) void name(const Call& call);  // until all families exist
#include "../native/runtime/ops.def"
#undef LTX_OP
namespace {

using Body = void (*)(const Call&);

template <Body kBody>
int guarded(const LtxCall* raw) {
  try {
    const Call call{raw};
    enter(context(call));
    if (!kBody) throw std::runtime_error("not written yet");
    kBody(call);
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(raw->error, raw->error_size, "%s", error.what());
  } catch (...) {
    std::snprintf(raw->error, raw->error_size, "unknown failure");
  }
  return 1;
}

}  // namespace

const LtxKernel kKernels[LTX_OP_COUNT] = {
#define LTX_OP(name, operands, scalars) guarded<&name>,
#include "../native/runtime/ops.def"
#undef LTX_OP
};

}  // namespace ltx::cuda
