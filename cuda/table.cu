#include <cstdio>
#include <new>

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
  } catch (const std::bad_alloc&) {
    std::snprintf(raw->error, raw->error_size, "out of memory on the host");
    return LTX_OUT_OF_MEMORY;
  } catch (const OutOfMemory& error) {
    std::snprintf(raw->error, raw->error_size, "%s", error.what());
    return LTX_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    std::snprintf(raw->error, raw->error_size, "%s", error.what());
  } catch (...) {
    std::snprintf(raw->error, raw->error_size, "unknown failure");
  }
  return LTX_FAILED;
}

}  // namespace

const LtxKernel kKernels[LTX_OP_COUNT] = {
#define LTX_OP(name, operands, scalars) guarded<&name>,
#include "../native/runtime/ops.def"
#undef LTX_OP
};

}  // namespace ltx::cuda
