#include "weight_cache.h"

#include <algorithm>

namespace ltx::cpu {
namespace {

// A training step uses at most six copies of a convolution's weight: forward and backward, the middle and both ends.
constexpr size_t kKeptCopies = 12;

struct Copy {
  Key key;
  dnnl::memory memory;
  uint64_t version;
};
using Copies = std::vector<Copy>;  // the last used at the end

}  // namespace

void free_weight_cache(void* state) { delete static_cast<Copies*>(state); }

Packed find_packed(Operand weight, const Key& key, const dnnl::memory::desc& layout) {
  // A weight in bf16 is there to save memory: of it no copy is kept.
  LtxCache* cache = weight.dtype() == LTX_BF16 ? nullptr : weight.tensor->cache;
  if (!cache) return {dnnl::memory(layout, onednn_engine()), true};
  if (!cache->state) cache->state = new Copies;
  Copies& copies = *static_cast<Copies*>(cache->state);
  const uint64_t version = weight.tensor->version;
  const auto found = std::find_if(copies.begin(), copies.end(), [&](const Copy& copy) {
    return copy.key == key && copy.memory.get_desc() == layout;
  });
  if (found == copies.end()) {
    if (copies.size() >= kKeptCopies) copies.erase(copies.begin());
    copies.push_back({key, dnnl::memory(layout, onednn_engine()), version});
    return {copies.back().memory, true};
  }
  std::rotate(found, found + 1, copies.end());
  Copy& copy = copies.back();
  const bool stale = copy.version != version;
  copy.version = version;
  return {copy.memory, stale};
}

}  // namespace ltx::cpu
