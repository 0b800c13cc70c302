// The CPU backend's table. Built once per instruction set (LTX_CPU_ISA) as libltx_cpu_<isa>.so.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <new>

#include "common.h"
#include "onednn.h"
#include "weight_cache.h"

namespace ltx::cpu {
namespace {

using Body = void (*)(const Call&);

template <Body kBody>
int guarded(const LtxCall* raw) {
  try {
    kBody(Call{raw});
    return 0;
  } catch (const std::bad_alloc&) {
    std::snprintf(raw->error, raw->error_size, "out of memory on the host");
    return LTX_OUT_OF_MEMORY;
  } catch (const OutOfMemory& error) {
    std::snprintf(raw->error, raw->error_size, "%s", error.what());
    return LTX_OUT_OF_MEMORY;
  } catch (const dnnl::error& error) {
    std::snprintf(raw->error, raw->error_size, "oneDNN: %s", error.what());
    if (error.status == dnnl_out_of_memory) return LTX_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    std::snprintf(raw->error, raw->error_size, "%s", error.what());
  } catch (...) {
    std::snprintf(raw->error, raw->error_size, "unknown failure");
  }
  return LTX_FAILED;
}

const LtxKernel kKernels[] = {
#define LTX_OP(name, operands, scalars) guarded<&name>,
#include "../runtime/ops.def"
#undef LTX_OP
};

void* allocate(void*, size_t bytes) { return allocate_pages(bytes); }
void release(void*, void* block, size_t) { std::free(block); }
int copy_in(void*, void* device, const void* host, size_t bytes, char*, size_t) {
  std::memcpy(device, host, bytes);
  return 0;
}

void copy_out(void*, void* host, const void* device, size_t bytes, LtxDone done, void* argument) {
  if (bytes) std::memcpy(host, device, bytes);
  done(argument, nullptr);
}

// Kernels are done when they return.
void wait(void*) {}

void free_cache(void*, void* state) { free_weight_cache(state); }

// Packed weights are looked at by version whenever they are used.
void refresh(void*, const LtxTensor*) {}

size_t memory_total(void*) {
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGE_SIZE));
}

void describe(void*, char* json, size_t size) {
  const dnnl_version_t* v = dnnl_version();
  std::snprintf(json, size, R"({"isa":"%s","threads":%d,"onednn":"%d.%d.%d","onednn_isa":%d})", LTX_CPU_ISA,
                omp_get_max_threads(), v->major, v->minor, v->patch, static_cast<int>(dnnl_get_effective_cpu_isa()));
}

bool supported() {
  __builtin_cpu_init();
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
}

const LtxBackend kBackend = {
    .version = LTX_BACKEND_VERSION,
    .op_count = LTX_OP_COUNT,
    .name = "cpu",
    .context = nullptr,
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
    .record_begin = nullptr,
    .record_end = nullptr,
    .replay = nullptr,
    .free_recording = nullptr,
};

}  // namespace

// With pages of 4 KiB the processor's prefetch ends at each of them and its translation buffers miss.
void* allocate_pages(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const bool huge = bytes >= kHugePage;
  void* block = nullptr;
  if (posix_memalign(&block, huge ? kHugePage : 64, bytes) != 0) return nullptr;
  if (huge) madvise(block, bytes, MADV_HUGEPAGE);
  return block;
}

void* scratch(int slot, size_t bytes) {
  struct Buffer {
    void* data = nullptr;
    size_t size = 0;
    ~Buffer() { std::free(data); }
  };
  thread_local Buffer buffers[9];
  Buffer& buffer = buffers[slot];
  if (buffer.size < bytes) {
    std::free(buffer.data);
    buffer.size = bytes + (bytes >> 2);
    buffer.data = allocate_pages(buffer.size);
    if (!buffer.data) {
      buffer.size = 0;
      throw OutOfMemory("out of memory: " + std::to_string(bytes) + " bytes of scratch space");
    }
  }
  return buffer.data;
}

}  // namespace ltx::cpu

extern "C" __attribute__((visibility("default"))) const LtxBackend* ltx_backend(uint32_t version, int device,
                                                                                char* reason, size_t reason_size) {
  if (version != LTX_BACKEND_VERSION) {
    std::snprintf(reason, reason_size, "backend interface %d, runtime asks for %u", LTX_BACKEND_VERSION, version);
    return nullptr;
  }
  if (device != 0) {
    std::snprintf(reason, reason_size, "there is one CPU device, 0; %d was asked for", device);
    return nullptr;
  }
  if (!ltx::cpu::supported()) {
    std::snprintf(reason, reason_size, "this processor lacks %s", LTX_CPU_ISA);
    return nullptr;
  }
#if defined(__AVX512F__)
  // LTX_CPU_ISA=avx512 means no more than that, for oneDNN too.
  if (std::getenv("LTX_CPU_ISA")) dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx512_core_bf16);
#endif
  return &ltx::cpu::kBackend;
}
