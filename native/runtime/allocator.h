// A caching allocator in stream order: a block that is given back can be handed out at once, because whatever uses it
// next is queued behind whatever used it last on the device's only stream.
//
// The backend gives segments. A block is cut from the smallest gap that holds it, and what comes back becomes one gap
// with its free neighbours: memory that the activations leave serves the gradients and the next step's activations,
// whatever their sizes. Small blocks have segments of their own, so that one that stays doesn't split a large gap.
//
// Which gap a block is cut from depends on the gaps' sizes and addresses, not on the order in which blocks came back: a
// step of fixed shapes finds the addresses of the step before, and so can be replayed (step_recorder.h).
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
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
  size_t cached = 0;  // the rest of the segments
  size_t peak = 0;    // largest live since the last reset
  size_t limit = 0;
  uint64_t allocations = 0;  // segments asked of the backend so far
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
  // Takes the segments out that no block is in, for free_segments once all that was queued before has run.
  std::vector<Block> detach_cached();
  void free_segments(const std::vector<Block>& segments);

  MemoryStats stats();
  void reset_peak();
  // `limited_by` tells in the report where the limit comes from.
  void set_limit(size_t bytes, std::string limited_by);

 private:
  struct Pool {
    std::map<char*, size_t> segments, gaps;        // by address
    std::set<std::pair<size_t, char*>> gap_sizes;  // the gaps by size, then address
    void add_gap(char* data, size_t bytes);
    void remove_gap(char* data, size_t bytes);
  };
  Pool& pool(size_t bytes);
  void grow(size_t bytes);
  std::string report(size_t bytes);
  const LtxBackend* backend_;
  std::mutex mutex_;
  Pool small_, large_;
  MemoryStats stats_;
  std::string limited_by_;
};

}  // namespace ltx
