// A caching allocator in stream order: a block that is given back can be handed out at once, because whatever uses it
// next is queued behind whatever used it last on the device's only stream.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

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
  // Gives the cached blocks back to the backend; only when nothing queued may still use them.
  void trim();

  MemoryStats stats();
  void reset_peak();
  void set_limit(size_t bytes);

 private:
  std::string report(size_t bytes);
  const LtxBackend* backend_;
  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  MemoryStats stats_;
};

}  // namespace ltx
