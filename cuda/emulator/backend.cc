// The emulator as a backend of the same table: device memory is the host's, a recording is a list of launches.
#include <cstdio>
#include <functional>
#include <memory>

#include "../common.cuh"
#include "../table.h"
#include "../weights.cuh"
#include "in_order.h"
#include "trace.h"

namespace ltx::cuda {
namespace {

struct Launch {
  const char* name;
  dim3 grid, block;
  size_t dynamic_shared;
  std::function<void()> body;
};

struct Recording {
  std::vector<Launch> launches;
  uint64_t scratch_generation;
};

struct EmulatorContext : Context {
  std::unique_ptr<Recording> recording;
};

EmulatorContext& emulated(void* context) { return *static_cast<EmulatorContext*>(context); }

void* allocate(void* context, size_t bytes) { return device_allocate(emulated(context), bytes); }
void release(void* context, void* block, size_t) { device_free(emulated(context), block); }
int copy_in(void*, void* device, const void* host, size_t bytes, char*, size_t) {
  std::memcpy(device, host, bytes);
  return 0;
}
void copy_out(void*, void* host, const void* device, size_t bytes, LtxDone done, void* argument) {
  if (bytes) std::memcpy(host, device, bytes);
  done(argument, nullptr);
}
void wait(void* context) { free_outgrown(emulated(context)); }
size_t memory_total(void*) { return size_t{16} << 30; }
void describe(void*, char* json, size_t size) { std::snprintf(json, size, R"({"name":"CUDA emulator"})"); }

int record_begin(void* context, char*, size_t) {
  emulated(context).recording = std::make_unique<Recording>();
  emulated(context).recording->scratch_generation = emulated(context).scratch_generation;
  return 0;
}

void* record_end(void* context, char* reason, size_t size) {
  auto recording = std::move(emulated(context).recording);
  if (recording->scratch_generation == emulated(context).scratch_generation) return recording.release();
  std::snprintf(reason, size, "scratch memory grew while recording");
  return nullptr;
}

int replay(void* context, void* state, char* reason, size_t size) {
  const auto& recording = *static_cast<Recording*>(state);
  if (recording.scratch_generation != emulated(context).scratch_generation) {
    std::snprintf(reason, size, "scratch memory has moved since");
    return 1;
  }
  for (const Launch& l : recording.launches) emulator::launch(l.name, l.grid, l.block, l.dynamic_shared, l.body);
  return 0;
}

void free_recording(void*, void* recording) { delete static_cast<Recording*>(recording); }

}  // namespace

void* device_allocate(Context&, size_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, 256, bytes) != 0) return nullptr;
  std::memset(block, 0xFF, bytes);  // NaN, so that reading what nobody wrote shows
  return block;
}
void device_free(Context&, void* block) { std::free(block); }
void enter(Context&) {}
int multiprocessors(const Context&) { return 2; }

void in_order(Context& context, const char* name, std::function<void()> body) {
  EmulatorContext& own = static_cast<EmulatorContext&>(context);
  if (own.recording) {
    own.recording->launches.push_back({name, 1, 1, 0, std::move(body)});
  } else {
    body();
  }
}

void clear(Context& context, void* device, size_t bytes) {
  if (bytes) in_order(context, "clear", [=] { std::memset(device, 0, bytes); });
}
void copy(Context& context, void* to, const void* from, size_t bytes) {
  if (bytes) in_order(context, "copy", [=] { std::memcpy(to, from, bytes); });
}

void run_or_record(const Call& call, const char* name, const void* kernel, dim3 grid, dim3 block, size_t dynamic_shared,
                   std::function<void()> body) {
  note_kernel(name, kernel);
  EmulatorContext& own = emulated(call.raw->context);
  if (own.recording) {
    own.recording->launches.push_back({name, grid, block, dynamic_shared, std::move(body)});
  } else {
    emulator::launch(name, grid, block, dynamic_shared, body);
  }
}

}  // namespace ltx::cuda

extern "C" __attribute__((visibility("default"))) const LtxBackend* ltx_backend(uint32_t version, int device,
                                                                                char* reason, size_t reason_size) {
  using namespace ltx::cuda;
  if (version != LTX_BACKEND_VERSION) {
    std::snprintf(reason, reason_size, "backend interface %d, runtime asks for %u", LTX_BACKEND_VERSION, version);
    return nullptr;
  }
  if (device != 0) {
    std::snprintf(reason, reason_size, "there is one emulator, 0; %d was asked for", device);
    return nullptr;
  }
  bool traced = false;
  try {
    traced = tracing();
  } catch (const std::exception& error) {
    std::snprintf(reason, reason_size, "%s", error.what());
    return nullptr;
  }
  static auto& context = *new EmulatorContext;  // never destroyed: a process may exit while its worker works
  static const LtxBackend backend = {
      .version = LTX_BACKEND_VERSION,
      .op_count = LTX_OP_COUNT,
      .name = "emulator",
      .context = &context,
      .kernels = traced ? traced_kernels() : kKernels,
      .allocate = allocate,
      .release = release,
      .copy_in = copy_in,
      .copy_out = copy_out,
      .wait = wait,
      .free_cache = free_cache,
      .refresh = refresh,
      .memory_total = memory_total,
      .describe = describe,
      .record_begin = record_begin,
      .record_end = record_end,
      .replay = replay,
      .free_recording = free_recording,
  };
  return &backend;
}
