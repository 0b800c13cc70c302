// A caching allocator in stream order: a block that is given back can be handed out at once, because whatever uses it
// next is queued behind whatever used it last on the device's only stream.
//
// Which cached block is handed out depends on the sizes and addresses of those there are, not on the order in which
// they came back: a step of fixed shapes finds the addresses of the step before, and so can be replayed
// (step_recorder.h).
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"

namespace ltx {

// What a tensor is for; the out-of-memory report lists the bytes of each.
enum MemoryGroup { kActivations, kParameters, kGradients, kOptimizer, kData, kGroupCount };
inline constexpr std::array<const char*, kGroupCount> kGroupNames = {"activations", "parameters", "gradients",
                                                                     "optimizer", "data"};

struct MemoryStats {
  size_t live = 0;    // handed out
  size_t cached = 0;  // kept for reuse
  size_t peak = 0;    // largest live since the last reset
  size_t limit = 0;
  uint64_t allocations = 0;  // blocks asked of the backend so far
  std::array<size_t, kGroupCount> groups{};
};

struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Allocator {
 public:
  explicit Allocator(const LtxBackend* backend);
  ~Allocator();

  struct Block {
    void* data = nullptr;
    size_t bytes = 0;
  };
  // Throws OutOfMemory with a report by group. Zero bytes give a null block.
  Block allocate(size_t bytes, MemoryGroup group);
  void release(Block block, MemoryGroup group);
  // Takes the cached blocks out, for free_blocks once all that was queued before has run.
  std::vector<Block> detach_cached();
  void free_blocks(const std::vector<Block>& blocks);

  MemoryStats stats();
  void reset_peak();
  void set_limit(size_t bytes);

 private:
  std::string report(size_t bytes);
  const LtxBackend* backend_;
  std::mutex mutex_;
  std::set<std::pair<size_t, void*>, std::less<>> free_;  // by size, then address
  MemoryStats stats_;
};

}  // namespace ltx
