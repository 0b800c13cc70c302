#include "allocator.h"

#include <algorithm>
#include <bit>
#include <cstdio>

namespace ltx {
namespace {

// Eight sizes a power of two: at most 12.5 % lost, and a step of fixed shapes always finds its blocks again.
size_t round_up(size_t bytes) {
  if (bytes <= 512) return (bytes + 63) & ~size_t{63};
  const size_t granule = std::bit_floor(bytes - 1) >> 3;
  return (bytes + granule - 1) / granule * granule;
}

std::string mebibytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

}  // namespace

Allocator::Allocator(const LtxBackend* backend) : backend_(backend) {
  stats_.limit = backend->memory_total(backend->context);
}

Allocator::~Allocator() { free_blocks(detach_cached()); }

Allocator::Block Allocator::allocate(size_t bytes, MemoryGroup group) {
  if (bytes == 0) return {};
  const size_t size = round_up(bytes);
  std::lock_guard lock(mutex_);
  Block block;
  if (auto found = free_.lower_bound({size, nullptr}); found != free_.end() && found->first <= size + size / 4) {
    block = {found->second, found->first};
    stats_.cached -= block.bytes;
    free_.erase(found);
  } else {
    // Cached blocks count against the limit, but they can't be freed here: queued work may still use them. The caller
    // detaches them, waits for the stream, frees them and tries again.
    if (stats_.live + stats_.cached + size > stats_.limit) throw OutOfMemory(report(bytes));
    block = {backend_->allocate(backend_->context, size), size};
    if (!block.data) throw OutOfMemory(report(bytes));
    ++stats_.allocations;
  }
  stats_.live += block.bytes;
  stats_.groups[group] += block.bytes;
  stats_.peak = std::max(stats_.peak, stats_.live);
  return block;
}

void Allocator::release(Block block, MemoryGroup group) {
  if (!block.data) return;
  std::lock_guard lock(mutex_);
  stats_.live -= block.bytes;
  stats_.groups[group] -= block.bytes;
  stats_.cached += block.bytes;
  free_.emplace(block.bytes, block.data);
}

std::vector<Allocator::Block> Allocator::detach_cached() {
  std::lock_guard lock(mutex_);
  std::vector<Block> blocks;
  blocks.reserve(free_.size());
  for (const auto& [bytes, data] : free_) blocks.push_back({data, bytes});
  free_.clear();
  stats_.cached = 0;
  return blocks;
}

void Allocator::free_blocks(const std::vector<Block>& blocks) {
  for (const Block& block : blocks) backend_->release(backend_->context, block.data, block.bytes);
}

MemoryStats Allocator::stats() {
  std::lock_guard lock(mutex_);
  return stats_;
}

void Allocator::reset_peak() {
  std::lock_guard lock(mutex_);
  stats_.peak = stats_.live;
}

void Allocator::set_limit(size_t bytes) {
  std::lock_guard lock(mutex_);
  stats_.limit = bytes;
}

std::string Allocator::report(size_t bytes) {
  std::string text = "out of memory on " + std::string(backend_->name) + ": " + mebibytes(bytes) + " asked for, " +
                     mebibytes(stats_.live) + " in use of " + mebibytes(stats_.limit) + " (";
  for (int i = 0; i < kGroupCount; ++i) {
    if (i) text += ", ";
    text += std::string(kGroupNames[i]) + " " + mebibytes(stats_.groups[i]);
  }
  return text + "); " + mebibytes(stats_.cached) + " cached. Use a smaller batch, clip or model, or bf16.";
}

}  // namespace ltx
