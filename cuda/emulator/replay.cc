// Makes the calls of a trace again, with operands in memory of their exact size, and compares what they write with what
// was written then, to the bit: neither a sanitizer nor another order of threads may change a result.
//
// replay TRACE [OP...]: one line on standard output for each call that differs or fails, then a summary. Exit 1 then.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "../context.h"
#include "trace.h"

extern "C" const LtxBackend* ltx_backend(uint32_t version, int device, char* reason, size_t reason_size);

namespace {

using namespace ltx::cuda;

const char* const kOps[] = {
#define LTX_OP(name, operands, scalars) #name,
#include "../../native/runtime/ops.def"
#undef LTX_OP
};

struct Free {
  void operator()(void* block) const { std::free(block); }
};

// Empty when the results are the same.
std::string repeat(const LtxBackend& backend, TracedCall& call) {
  std::vector<std::unique_ptr<void, Free>> blocks;
  for (const auto& bytes : call.before) {
    void* block = nullptr;
    if (posix_memalign(&block, 256, bytes.size()) != 0) return "out of memory";
    std::memcpy(block, bytes.data(), bytes.size());
    blocks.emplace_back(block);
  }
  std::vector<LtxCache> caches(call.tensors.size());
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    LtxTensor& tensor = call.tensors[i];
    if (tensor.data) tensor.data = blocks[reinterpret_cast<uintptr_t>(tensor.data) - 1].get();
    if (tensor.dtype == LTX_I32) tensor.host = tensor.data;  // the emulator's memory is the host's
    if (call.parameter[i]) tensor.cache = &caches[i];
  }
  char error[512] = "";
  const LtxCall raw{backend.context,
                    call.tensors.data(),
                    call.scalars.data(),
                    static_cast<int32_t>(call.tensors.size()),
                    static_cast<int32_t>(call.scalars.size()),
                    error,
                    sizeof error};
  const int status = backend.kernels[call.op](&raw);
  for (const LtxCache& cache : caches) {
    if (cache.state) backend.free_cache(backend.context, cache.state);
  }
  // Fresh and exact for the next call.
  auto& context = *static_cast<Context*>(backend.context);
  for (Buffer& buffer : context.scratch) {
    if (buffer.data) device_free(context, buffer.data);
    buffer = {};
  }
  free_outgrown(context);
  if (status != 0) return error;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto& expected = call.after[i];
    const auto* found = static_cast<const char*>(blocks[i].get());
    for (size_t j = 0; j < expected.size(); ++j) {
      if (found[j] != expected[j]) {
        return "block " + std::to_string(i) + " differs from byte " + std::to_string(j) + " of " +
               std::to_string(expected.size());
      }
    }
  }
  return "";
}

}  // namespace

int main(int count, char** arguments) {
  std::FILE* file = count > 1 ? std::fopen(arguments[1], "rb") : nullptr;
  if (!file) {
    std::fprintf(stderr, "usage: replay TRACE [OP...]\n");
    return 2;
  }
  char reason[512] = "";
  const LtxBackend* backend = ltx_backend(LTX_BACKEND_VERSION, 0, reason, sizeof reason);
  if (!backend) {
    std::fprintf(stderr, "%s\n", reason);
    return 2;
  }
  int made = 0, failed = 0;
  for (TracedCall call; read(file, call);) {
    const char* op = kOps[call.op];
    bool wanted = count == 2;
    for (int i = 2; i < count; ++i) wanted = wanted || std::strcmp(arguments[i], op) == 0;
    if (!wanted) continue;
    // Named before it runs: a sanitizer or the emulator may end the process in the middle.
    std::fprintf(stderr, "%s: %s\n", op, call.kernels.c_str());
    const std::string why = repeat(*backend, call);
    ++made;
    if (why.empty()) continue;
    ++failed;
    std::printf("%s (%s): %s\n", op, call.kernels.c_str(), why.c_str());
  }
  std::fclose(file);
  std::printf("%d calls, %d differ\n", made, failed);
  return failed || made == 0 ? 1 : 0;
}
