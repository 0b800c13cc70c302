// Packed copies of a parameter, kept beside its storage and made again only when its version changes.
#pragma once
#include "onednn.h"

namespace ltx::cpu {

// Frees what a parameter's LtxCache::state holds; the table's free_cache.
void free_weight_cache(void* state);

struct Packed {
  dnnl::memory memory;
  bool stale;  // must be written before use
};
// The copy of a weight in a layout; key tells copies of one layout but different content apart. A weight without a
// cache, or in bf16, gets a new copy every time.
Packed find_packed(Operand weight, const Key& key, const dnnl::memory::desc& layout);

// The same, written by fill(memory) where needed.
template <class Fill>
dnnl::memory packed_weight(Operand weight, const Key& key, const dnnl::memory::desc& layout, Fill&& fill) {
  Packed packed = find_packed(weight, key, layout);
  if (packed.stale) fill(packed.memory);
  return packed.memory;
}

}  // namespace ltx::cpu
