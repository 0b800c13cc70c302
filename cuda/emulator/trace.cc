#include "trace.h"

#include <dlfcn.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <stdexcept>
#include <utility>

#include "../table.h"

namespace ltx::cuda {
namespace {

constexpr int kExamples = 4;
constexpr size_t kSmall = size_t{32} << 10, kLargest = size_t{4} << 20;  // bytes of a call

// The calls of a device come one at a time, from its worker thread. Never destroyed: a process may exit while it works.
std::FILE* file = nullptr;
auto& examples = *new std::map<uint64_t, int>;
auto& launched = *new std::set<uint64_t>;
auto& names = *new std::set<std::string>;

size_t bytes_of(const LtxTensor& tensor) {
  size_t count = 1;
  for (int i = 0; i < tensor.dims; ++i) count *= static_cast<size_t>(tensor.shape[i]);
  return tensor.dims < 0 ? 0 : count * (tensor.dtype == LTX_BF16 ? 2 : tensor.dtype == LTX_U8 ? 1 : 4);
}

std::vector<std::vector<char>> contents(const std::vector<std::pair<const char*, size_t>>& blocks) {
  std::vector<std::vector<char>> all;
  for (const auto& [data, bytes] : blocks) all.emplace_back(data, data + bytes);
  return all;
}

int trace(int op, const LtxCall* raw) {
  TracedCall call;
  call.op = op;
  call.scalars.assign(raw->scalars, raw->scalars + raw->scalar_count);
  std::vector<std::pair<const char*, size_t>> blocks;
  size_t total = 0;
  for (int i = 0; i < raw->tensor_count; ++i) {
    LtxTensor tensor = raw->tensors[i];
    const size_t bytes = bytes_of(tensor);
    call.parameter.push_back(tensor.cache != nullptr);
    tensor.cache = nullptr;
    tensor.host = nullptr;
    if (bytes) {
      const auto* data = static_cast<const char*>(tensor.data);
      size_t number = 0;
      while (number < blocks.size() && blocks[number].first != data) ++number;
      if (number == blocks.size()) blocks.emplace_back(data, 0);
      blocks[number].second = std::max(blocks[number].second, bytes);
      tensor.data = reinterpret_cast<void*>(number + 1);
      total += bytes;
    } else {
      tensor.data = nullptr;
    }
    call.tensors.push_back(tensor);
  }
  if (total <= kLargest) call.before = contents(blocks);
  launched.clear();
  names.clear();
  const int status = kKernels[op](raw);
  bool wanted = false;
  for (const uint64_t kernel : launched) wanted = wanted || examples[kernel] < (total <= kSmall ? kExamples : 1);
  if (status == 0 && total <= kLargest && wanted) {
    for (const uint64_t kernel : launched) ++examples[kernel];
    call.instances.assign(launched.begin(), launched.end());
    for (const std::string& name : names) call.kernels += (call.kernels.empty() ? "" : " ") + name;
    call.after = contents(blocks);
    write(file, call);
    std::fflush(file);
  }
  return status;
}

template <int... kOps>
const LtxKernel* table(std::integer_sequence<int, kOps...>) {
  static const LtxKernel kernels[] = {[](const LtxCall* call) { return trace(kOps, call); }...};
  return kernels;
}

template <class T>
void put(std::FILE* to, const T& value) {
  std::fwrite(&value, sizeof value, 1, to);
}
template <class T>
bool get(std::FILE* from, T& value) {
  return std::fread(&value, sizeof value, 1, from) == 1;
}
template <class Container>
void put_all(std::FILE* to, const Container& values) {
  put(to, uint64_t{values.size()});
  std::fwrite(values.data(), sizeof values[0], values.size(), to);
}
template <class Container>
bool get_all(std::FILE* from, Container& values) {
  uint64_t count = 0;
  if (!get(from, count)) return false;
  values.resize(count);
  return std::fread(values.data(), sizeof values[0], count, from) == count;
}

}  // namespace

bool tracing() {
  const char* path = std::getenv("LTX_EMULATOR_TRACE");
  if (!path || file) return file != nullptr;
  if (std::FILE* earlier = std::fopen(path, "rb")) {
    for (TracedCall call; read(earlier, call);) {
      for (const uint64_t kernel : call.instances) ++examples[kernel];
    }
    std::fclose(earlier);
  }
  file = std::fopen(path, "ab");
  if (!file) throw std::runtime_error("LTX_EMULATOR_TRACE: " + std::string(path) + ": " + std::strerror(errno));
  return true;
}

const LtxKernel* traced_kernels() { return table(std::make_integer_sequence<int, LTX_OP_COUNT>{}); }

void note_kernel(const char* name, const void* kernel) {
  if (!file) return;
  Dl_info library;
  if (!dladdr(kernel, &library)) return;
  launched.insert(reinterpret_cast<uint64_t>(kernel) - reinterpret_cast<uint64_t>(library.dli_fbase));
  std::string plain = name;
  for (const char c : {'(', ')', ' '}) std::erase(plain, c);
  names.insert(plain);
}

void write(std::FILE* to, const TracedCall& call) {
  put(to, call.op);
  put_all(to, call.kernels);
  put_all(to, call.instances);
  put_all(to, call.scalars);
  put_all(to, call.tensors);
  put_all(to, call.parameter);
  put(to, uint64_t{call.before.size()});
  for (size_t i = 0; i < call.before.size(); ++i) {
    put_all(to, call.before[i]);
    put_all(to, call.after[i]);
  }
}

bool read(std::FILE* from, TracedCall& call) {
  uint64_t blocks = 0;
  if (!get(from, call.op) || !get_all(from, call.kernels) || !get_all(from, call.instances) ||
      !get_all(from, call.scalars) || !get_all(from, call.tensors) || !get_all(from, call.parameter) ||
      !get(from, blocks)) {
    return false;
  }
  call.before.resize(blocks);
  call.after.resize(blocks);
  for (size_t i = 0; i < blocks; ++i) {
    if (!get_all(from, call.before[i]) || !get_all(from, call.after[i])) return false;
  }
  return true;
}

}  // namespace ltx::cuda
