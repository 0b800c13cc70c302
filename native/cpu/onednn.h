// The thin layer over oneDNN: primitives made once a shape and kept, run on plain pointers.
#pragma once
#include <initializer_list>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "common.h"

namespace ltx::cpu {

// Never destroyed: packed weights may outlive the thread and the statics that made them.
const dnnl::engine& onednn_engine();
const dnnl::stream& onednn_stream();

// Whether oneDNN computes bf16 on this processor; f32 always works.
bool onednn_has_bf16();

inline dnnl::memory::data_type onednn_type(LtxDtype dtype) {
  return dtype == LTX_BF16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

// Runs a kernel with every bf16 operand replaced by an f32 copy, for processors without bf16. Operands from
// first_output on are written back.
void run_in_f32(const Call& call, int first_output, void (*kernel)(const Call&));
// Does so and returns true when that is what the operand's dtype needs.
bool ran_in_f32(const Call& call, Operand operand, int first_output, void (*kernel)(const Call&));
// f32 by a weight in bf16, which oneDNN can't multiply.
inline bool mixed(Operand x, Operand w) { return x.dtype() == LTX_F32 && w.dtype() == LTX_BF16; }

// An argument of a primitive: a plain pointer (NULL: left out), or a memory object made elsewhere.
struct Argument {
  int name;
  const void* data = nullptr;
  dnnl_memory_t memory = nullptr;
  Argument(int name, const void* data) : name(name), data(data) {}
  Argument(int name, const dnnl::memory& memory) : name(name), memory(memory.get()) {}
};

// A primitive with the memory objects of its arguments.
class Primitive {
 public:
  explicit Primitive(dnnl::primitive_desc_base desc) : desc_(std::move(desc)), primitive_(desc_.get()) {}
  // The layout that the primitive wants an argument in.
  dnnl::memory::desc layout(int name) const { return desc_.query_md(dnnl::query::exec_arg_md, name); }
  void run(std::initializer_list<Argument> arguments);

 private:
  dnnl_memory_t bind(int name, void* data);

  dnnl::primitive_desc_base desc_;
  dnnl::primitive primitive_;
  std::vector<std::pair<int, dnnl::memory>> bound_;
};

// Everything that a primitive depends on.
using Key = std::vector<int64_t>;

// The worker thread's primitive for a key, made by make() (which returns a primitive descriptor) when it is new. The
// reference holds until the next call.
Primitive* find_primitive(const Key& key);
Primitive& keep_primitive(const Key& key, Primitive primitive);
template <class Make>
Primitive& primitive_for(const Key& key, Make&& make) {
  Primitive* found = find_primitive(key);
  return found ? *found : keep_primitive(key, Primitive(make()));
}

// Copies between layouts and dtypes.
void reorder(const dnnl::memory::desc& from, const void* source, const dnnl::memory& to);
void reorder(const dnnl::memory& from, const dnnl::memory::desc& to, void* target);

}  // namespace ltx::cpu
