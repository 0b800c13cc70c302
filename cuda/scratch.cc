#include <stdexcept>
#include <string>

#include "context.h"

namespace ltx::cuda {

void* scratch(Context& context, int slot, size_t bytes) {
  Buffer& buffer = context.scratch[slot];
  if (buffer.bytes < bytes) {
    // What grows once grows again; the first time it is exact, so that sanitizers see its end.
    const size_t wanted = buffer.data ? bytes + bytes / 4 : bytes;
    void* data = device_allocate(context, wanted);
    if (!data) throw OutOfMemory("out of memory: " + std::to_string(wanted) + " bytes of scratch space");
    if (buffer.data) context.outgrown.push_back(buffer);
    buffer = {data, wanted};
    ++context.scratch_generation;
  }
  return buffer.data;
}

void free_outgrown(Context& context) {
  for (const Buffer& buffer : context.outgrown) device_free(context, buffer.data);
  context.outgrown.clear();
}

}  // namespace ltx::cuda
