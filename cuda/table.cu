#include <cstdio>

#include "common.cuh"
#include "table.h"

namespace ltx::cuda {
namespace {

using Body = void (*)(const Call&);

template <Body kBody>
int guarded(const LtxCall* raw) {
  try {
    const Call call{raw};
    enter(context(call));
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

const char* fault_message(uint32_t fault) {
  switch (fault) {
    case 1 + LTX_OP_gather_rows:
      return "[gather_rows] an index is outside the table";
    case 1 + LTX_OP_scatter_rows:
      return "[scatter_rows] an index is outside the table";
    default:
      return "a kernel reported a fault";
  }
}

}  // namespace ltx::cuda
