#include "onednn.h"

#include <algorithm>
#include <cstdlib>

namespace ltx::cpu {
namespace {

constexpr size_t kKeptPrimitives = 512;

struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0xCBF29CE484222325u;
    for (const int64_t word : key)
      hash = (hash ^ static_cast<uint64_t>(word)) * 0x9E3779B97F4A7C15u, hash ^= hash >> 29;
    return hash;
  }
};

struct Kept {
  std::unique_ptr<Primitive> primitive;
  uint64_t used;
};

struct PrimitiveCache {
  std::unordered_map<Key, Kept, KeyHash> entries;
  uint64_t clock = 0;
};

PrimitiveCache& primitive_cache() {
  thread_local PrimitiveCache cache;
  return cache;
}

struct Freed {
  void operator()(void* block) const { std::free(block); }
};

// Copies a contiguous array from one element type to another.
template <class From, class To>
void convert(const void* source, void* target, int64_t count) {
  const From* from = static_cast<const From*>(source);
  To* to = static_cast<To*>(target);
  parallel(count, 0.3, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = static_cast<float>(from[i]);
  });
}

}  // namespace

const dnnl::engine& onednn_engine() {
  static const auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

const dnnl::stream& onednn_stream() {
  static const auto* stream = new dnnl::stream(onednn_engine());
  return *stream;
}

bool onednn_has_bf16() {
  static const bool has = (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core) == dnnl_cpu_isa_avx512_core;
  return has;
}

void run_in_f32(const Call& call, int first_output, void (*kernel)(const Call&)) {
  std::vector<LtxTensor> tensors(call.raw->tensors, call.raw->tensors + call.count());
  const auto replaced = [&](int i) { return call[i] && call[i].dtype() == LTX_BF16; };
  const auto padded = [&](int i) { return (call[i].size() + 15) / 16 * 16; };
  int64_t total = 0;
  for (int i = 0; i < call.count(); ++i) total += replaced(i) ? padded(i) : 0;
  const std::unique_ptr<void, Freed> copies(allocate_pages(static_cast<size_t>(total) * sizeof(float)));
  if (total && !copies) throw std::runtime_error("out of memory: f32 copies of bf16 operands");
  float* next = static_cast<float*>(copies.get());
  for (int i = 0; i < call.count(); ++i) {
    if (!replaced(i)) continue;
    convert<bf16, float>(call[i].data<void>(), next, call[i].size());  // outputs too: some are added to
    tensors[i].data = next;
    tensors[i].dtype = LTX_F32;
    tensors[i].cache = nullptr;
    next += padded(i);
  }
  LtxCall raw = *call.raw;
  raw.tensors = tensors.data();
  kernel(Call{&raw});
  for (int i = first_output; i < call.count(); ++i) {
    if (replaced(i)) convert<float, bf16>(tensors[i].data, call[i].data<void>(), call[i].size());
  }
}

bool ran_in_f32(const Call& call, Operand operand, int first_output, void (*kernel)(const Call&)) {
  if (operand.dtype() != LTX_BF16 || onednn_has_bf16()) return false;
  run_in_f32(call, first_output, kernel);
  return true;
}

dnnl_memory_t Primitive::bind(int name, void* data) {
  for (auto& [bound, memory] : bound_) {
    if (bound != name) continue;
    if (memory.get_data_handle() != data) memory.set_data_handle(data);
    return memory.get();
  }
  bound_.emplace_back(name, dnnl::memory(layout(name), onednn_engine(), data));
  return bound_.back().second.get();
}

void Primitive::run(std::initializer_list<Argument> arguments) {
  dnnl_exec_arg_t list[8];
  int count = 0;
  for (const Argument& argument : arguments) {
    dnnl_memory_t memory = argument.memory;
    if (!memory && argument.data) memory = bind(argument.name, const_cast<void*>(argument.data));
    if (memory) list[count++] = {argument.name, memory};
  }
  dnnl::error::wrap_c_api(dnnl_primitive_execute(primitive_.get(), onednn_stream().get(), count, list),
                          "oneDNN could not execute a primitive");
}

Primitive* find_primitive(const Key& key) {
  PrimitiveCache& cache = primitive_cache();
  const auto found = cache.entries.find(key);
  if (found == cache.entries.end()) return nullptr;
  found->second.used = ++cache.clock;
  return found->second.primitive.get();
}

Primitive& keep_primitive(const Key& key, Primitive primitive) {
  PrimitiveCache& cache = primitive_cache();
  if (cache.entries.size() >= kKeptPrimitives) {
    cache.entries.erase(std::min_element(cache.entries.begin(), cache.entries.end(),
                                         [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
  }
  Kept& kept = cache.entries[key];
  kept = {std::make_unique<Primitive>(std::move(primitive)), ++cache.clock};
  return *kept.primitive;
}

namespace {

Primitive& reorder_primitive(const dnnl::memory::desc& from, const dnnl::memory::desc& to) {
  // A layout's bytes are its key: the structure is plain and its unused part is zero.
  Key key((sizeof from.data + sizeof to.data) / sizeof(int64_t) + 2);
  key[0] = -1;
  std::memcpy(&key[1], &from.data, sizeof from.data);
  std::memcpy(reinterpret_cast<char*>(&key[1]) + sizeof from.data, &to.data, sizeof to.data);
  return primitive_for(key, [&] { return dnnl::reorder::primitive_desc(onednn_engine(), from, onednn_engine(), to); });
}

}  // namespace

void reorder(const dnnl::memory::desc& from, const void* source, const dnnl::memory& to) {
  reorder_primitive(from, to.get_desc()).run({{DNNL_ARG_FROM, source}, {DNNL_ARG_TO, to}});
}

void reorder(const dnnl::memory& from, const dnnl::memory::desc& to, void* target) {
  reorder_primitive(from.get_desc(), to).run({{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, target}});
}

}  // namespace ltx::cpu
