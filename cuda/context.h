// What the backend keeps for each device: its stream, scratch memory, staging for copies, what is being recorded. The
// functions that touch the device have a body in backend.cu (CUDA) and one in emulator/backend.cc; that is all in which
// the host's sides of the two differ.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace ltx::cuda {

struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
};

// Backends derive from it.
struct Context {
  Buffer scratch[8];
  // Scratch buffers that were outgrown: work that is queued may use them still.
  std::vector<Buffer> outgrown;
  // Goes up whenever a scratch buffer moves: recordings made before hold its old address.
  uint64_t scratch_generation = 0;
};

// --- device
// Device memory, NULL when out of it.
void* device_allocate(Context& context, size_t bytes);
// Waits for work that uses the block.
void device_free(Context& context, void* block);
// Makes the calling thread's CUDA calls go to the context's device.
void enter(Context& context);
// In the stream's order:
void clear(Context& context, void* device, size_t bytes);
void copy(Context& context, void* to, const void* from, size_t bytes);
// Streaming multiprocessors. Never a reason to add up in another order.
int multiprocessors(const Context& context);

// --- scratch.cc
// Device memory that is good until the kernels of the next call: slots 0..7 are different buffers. Throws when out of
// memory. The contents are undefined.
void* scratch(Context& context, int slot, size_t bytes);
void free_outgrown(Context& context);

}  // namespace ltx::cuda
