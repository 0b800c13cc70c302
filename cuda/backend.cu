// The CUDA backend's table for each GPU: probing, memory, copies in the stream's order, graphs.
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

#include "common.cuh"
#include "cublaslt.h"
#include "reader.h"
#include "table.h"
#include "weights.cuh"

namespace ltx::cuda {
namespace {

// Page-locked memory through which bytes go to the device: the copy is asynchronous only from such memory, and the host
// may change its own bytes as soon as they are staged.
class Staging {
 public:
  void send(cudaStream_t stream, char* device, const char* host, size_t bytes) {
    for (size_t done = 0; done < bytes; done += kBytes) {
      Slot& slot = slots_[next_];
      next_ = (next_ + 1) % kSlots;
      if (!slot.data) {
        check(cudaMallocHost(&slot.data, kBytes), "staging memory");
        check(cudaEventCreateWithFlags(&slot.sent, cudaEventDisableTiming), "event");
      } else {
        check(cudaEventSynchronize(slot.sent), "copy to the device");
      }
      const size_t part = bytes - done < kBytes ? bytes - done : kBytes;
      std::memcpy(slot.data, host + done, part);
      check(cudaMemcpyAsync(device + done, slot.data, part, cudaMemcpyHostToDevice, stream), "copy to the device");
      check(cudaEventRecord(slot.sent, stream), "event");
    }
  }

 private:
  static constexpr size_t kBytes = size_t{4} << 20;
  static constexpr int kSlots = 4;
  struct Slot {
    void* data = nullptr;
    cudaEvent_t sent = nullptr;
  };
  Slot slots_[kSlots];
  int next_ = 0;
};

struct Recording {
  cudaGraphExec_t graph;
  uint64_t scratch_generation;
};

// Lives as long as the process: the driver may be gone before static destructors run.
struct CudaContext : Context {
  int index = 0;
  cudaStream_t stream = nullptr;
  cudaDeviceProp properties{};
  size_t memory = 0;
  Staging staging;
  Reader* reader = nullptr;
  uint64_t generation_at_begin = 0;
  LtxBackend backend{};
  // The first failure of what can't report one itself; given to the next copy_out.
  std::string deferred_error;
};

CudaContext& own(void* context) { return *static_cast<CudaContext*>(context); }
CudaContext& own(Context& context) { return static_cast<CudaContext&>(context); }

void* allocate(void* context, size_t bytes) { return device_allocate(own(context), bytes); }
void release(void* context, void* block, size_t) { device_free(own(context), block); }

template <class Body>
void defer_errors(CudaContext& context, Body&& body) {
  try {
    enter(context);
    body();
  } catch (const std::exception& error) {
    if (context.deferred_error.empty()) context.deferred_error = error.what();
  }
}

int copy_in(void* context, void* device, const void* host, size_t bytes, char* error, size_t error_size) {
  CudaContext& c = own(context);
  try {
    enter(c);
    c.staging.send(c.stream, static_cast<char*>(device), static_cast<const char*>(host), bytes);
    return 0;
  } catch (const std::exception& failure) {
    std::snprintf(error, error_size, "%s", failure.what());
    return LTX_FAILED;
  }
}

void copy_out(void* context, void* host, const void* device, size_t bytes, LtxDone done, void* argument) {
  CudaContext& c = own(context);
  if (c.deferred_error.empty()) {
    defer_errors(c, [&] { c.reader->read(c.stream, host, device, bytes, done, argument); });
    if (c.deferred_error.empty()) return;
  }
  const std::string error = std::exchange(c.deferred_error, {});
  done(argument, error.c_str());
}

void wait(void* context) {
  CudaContext& c = own(context);
  defer_errors(c, [&] {
    check(cudaStreamSynchronize(c.stream), "the GPU");
    free_outgrown(c);
  });
}

size_t memory_total(void* context) { return own(context).memory; }

void describe(void* context, char* json, size_t size) {
  const CudaContext& c = own(context);
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  std::snprintf(json, size,
                R"({"name":"%s","compute":"%d.%d","memory":%zu,"multiprocessors":%d,"driver":"%d.%d",)"
                R"("runtime":"%d.%d","cublaslt":"%zu"})",
                c.properties.name, c.properties.major, c.properties.minor, c.properties.totalGlobalMem,
                c.properties.multiProcessorCount, driver / 1000, driver % 1000 / 10, runtime / 1000,
                runtime % 1000 / 10, cublaslt_version());
}

int refuse(char* reason, size_t size, const char* what, cudaError_t status) {
  cudaGetLastError();  // not sticky: the next launch must not trip over it
  std::snprintf(reason, size, "%s: %s", what, cudaGetErrorString(status));
  return 1;
}

// Thread-local capture: other threads may allocate meanwhile.
int record_begin(void* context, char* reason, size_t size) {
  CudaContext& c = own(context);
  enter(c);
  const cudaError_t status = cudaStreamBeginCapture(c.stream, cudaStreamCaptureModeThreadLocal);
  if (status != cudaSuccess) return refuse(reason, size, "cudaStreamBeginCapture", status);
  c.generation_at_begin = c.scratch_generation;
  return 0;
}

void* record_end(void* context, char* reason, size_t size) {
  CudaContext& c = own(context);
  cudaGraph_t graph = nullptr;
  cudaError_t status = cudaStreamEndCapture(c.stream, &graph);
  if (status != cudaSuccess || !graph) {
    refuse(reason, size, "cudaStreamEndCapture", status);
    return nullptr;
  }
  cudaGraphExec_t executable = nullptr;
  status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  if (status != cudaSuccess) {
    refuse(reason, size, "cudaGraphInstantiate", status);
    return nullptr;
  }
  if (c.generation_at_begin != c.scratch_generation) {
    cudaGraphExecDestroy(executable);
    std::snprintf(reason, size, "scratch memory grew while recording");
    return nullptr;
  }
  return new Recording{executable, c.scratch_generation};
}

int replay(void* context, void* state, char* reason, size_t size) {
  CudaContext& c = own(context);
  const auto& recording = *static_cast<Recording*>(state);
  if (recording.scratch_generation != c.scratch_generation) {
    std::snprintf(reason, size, "scratch memory has moved since");
    return 1;
  }
  enter(c);
  const cudaError_t status = cudaGraphLaunch(recording.graph, c.stream);
  return status == cudaSuccess ? 0 : refuse(reason, size, "cudaGraphLaunch", status);
}

void free_recording(void* context, void* state) {
  enter(own(context));
  auto* recording = static_cast<Recording*>(state);
  cudaGraphExecDestroy(recording->graph);
  delete recording;
}

// Null with the reason. One for each GPU of the process, made at first use.
CudaContext* open(int index, char* reason, size_t size) {
  static std::mutex mutex;
  static auto* const contexts = new std::map<int, CudaContext*>;
  std::lock_guard lock(mutex);
  if (const auto found = contexts->find(index); found != contexts->end()) return found->second;
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) {
      std::snprintf(reason, size, "no NVIDIA driver on this machine (%s)", cudaGetErrorString(status));
    } else {
      std::snprintf(reason, size,
                    "the NVIDIA driver supports CUDA %d.%d, this library needs %d.%d: update the driver (%s)",
                    driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10,
                    cudaGetErrorString(status));
    }
    return nullptr;
  }
  if (index < 0 || index >= count) {
    std::snprintf(reason, size, "no GPU %d: this machine has %d, numbered from 0", index, count);
    return nullptr;
  }
  auto context = std::make_unique<CudaContext>();
  context->index = index;
  try {
    check(cudaGetDeviceProperties(&context->properties, index), "cudaGetDeviceProperties");
    if (context->properties.major < 8) {
      std::snprintf(reason, size, "%s has compute capability %d.%d, at least 8.0 is needed (Ampere or newer)",
                    context->properties.name, context->properties.major, context->properties.minor);
      return nullptr;
    }
    if (!open_cublaslt(reason, size)) return nullptr;
    enter(*context);
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    context->memory = free;
    check(cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking), "cudaStreamCreate");
    context->reader = new Reader(index);
  } catch (const std::exception& error) {
    std::snprintf(reason, size, "GPU %d: %s", index, error.what());
    return nullptr;
  }
  context->backend = {
      .version = LTX_BACKEND_VERSION,
      .op_count = LTX_OP_COUNT,
      .name = "cuda",
      .context = static_cast<Context*>(context.get()),
      .kernels = kKernels,
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
  return (*contexts)[index] = context.release();
}

// Calls that would end a capture on this thread are let through: they don't touch the captured stream.
struct Relaxed {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode); }
};

}  // namespace

void enter(Context& context) {
  thread_local int current = -1;
  const int wanted = own(context).index;
  if (current == wanted) return;
  check(cudaSetDevice(wanted), "cudaSetDevice");
  current = wanted;
}

void* device_allocate(Context& context, size_t bytes) {
  void* block = nullptr;
  const Relaxed relaxed;
  if (cudaSetDevice(own(context).index) == cudaSuccess && cudaMalloc(&block, bytes) == cudaSuccess) return block;
  cudaGetLastError();
  return nullptr;
}

void device_free(Context& context, void* block) {
  const Relaxed relaxed;
  if (cudaSetDevice(own(context).index) == cudaSuccess) cudaFree(block);
}

void clear(Context& context, void* device, size_t bytes) {
  if (bytes) check(cudaMemsetAsync(device, 0, bytes, own(context).stream), "clear");
}

void copy(Context& context, void* to, const void* from, size_t bytes) {
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, own(context).stream), "copy");
}

int multiprocessors(const Context& context) {
  return static_cast<const CudaContext&>(context).properties.multiProcessorCount;
}

cudaStream_t stream(const Call& call) { return own(call.raw->context).stream; }

}  // namespace ltx::cuda

extern "C" __attribute__((visibility("default"))) const LtxBackend* ltx_backend(uint32_t version, int device,
                                                                                char* reason, size_t reason_size) {
  if (version != LTX_BACKEND_VERSION) {
    std::snprintf(reason, reason_size, "backend interface %d, runtime asks for %u", LTX_BACKEND_VERSION, version);
    return nullptr;
  }
  const ltx::cuda::CudaContext* context = ltx::cuda::open(device, reason, reason_size);
  return context ? &context->backend : nullptr;
}
