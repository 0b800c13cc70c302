#include "allocator.h"

#include <algorithm>
#include <cstdio>
#include <iterator>

namespace ltx {
namespace {

#ifdef __SANITIZE_ADDRESS__
// Every block is a segment: AddressSanitizer then sees what is read or written past its end.
constexpr bool kShared = false;
constexpr size_t kGranule = 64;
#else
constexpr bool kShared = true;
constexpr size_t kGranule = 256;  // any access to a block is aligned as in a segment of its own
#endif

constexpr size_t kSmall = size_t{256} << 10;
constexpr size_t kSegment = size_t{2} << 20;
// A segment is at least this part of what there is: few segments, and little more than is needed.
constexpr size_t kGrowth = 8;

size_t round_up(size_t bytes, size_t granule) { return (bytes + granule - 1) / granule * granule; }

std::string mebibytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

}  // namespace

void Allocator::Pool::add_gap(char* data, size_t bytes) {
  gaps.emplace(data, bytes);
  gap_sizes.emplace(bytes, data);
}

void Allocator::Pool::remove_gap(char* data, size_t bytes) {
  gaps.erase(data);
  gap_sizes.erase({bytes, data});
}

Allocator::Allocator(const LtxBackend* backend) : backend_(backend) {
  stats_.limit = backend->memory_total(backend->context);
}

Allocator::~Allocator() { free_segments(detach_cached()); }

// A block is as long as was asked for, so its pool can be told by its length.
Allocator::Pool& Allocator::pool(size_t bytes) { return bytes <= kSmall ? small_ : large_; }

Allocator::Block Allocator::allocate(size_t bytes, MemoryGroup group) {
  if (bytes == 0) return {};
  const size_t size = round_up(bytes, kGranule);
  std::lock_guard lock(mutex_);
  if (stats_.live + size > stats_.limit) throw OutOfMemory(report(bytes));
  Pool& from = pool(size);
  const auto find = [&] {
    const auto gap = from.gap_sizes.lower_bound({size, nullptr});
    return kShared || gap == from.gap_sizes.end() || gap->first == size ? gap : from.gap_sizes.end();
  };
  auto found = find();
  if (found == from.gap_sizes.end()) {
    grow(size);
    found = find();
  }
  const auto [gap, data] = *found;
  from.remove_gap(data, gap);
  if (gap > size) from.add_gap(data + size, gap - size);
  stats_.cached -= size;
  stats_.live += size;
  stats_.groups[group] += size;
  stats_.peak = std::max(stats_.peak, stats_.live);
  return {data, size};
}

// Adds a segment with room for a block.
void Allocator::grow(size_t bytes) {
  const size_t reserved = stats_.live + stats_.cached;
  // Segments without a block count against the limit, but they can't be freed here: queued work may still use them. The
  // caller detaches them, waits for the stream, frees them and tries again.
  const size_t room = stats_.limit > reserved ? stats_.limit - reserved : 0;
  if (bytes > room) throw OutOfMemory(report(bytes));
  size_t size = bytes;
  if (kShared) size = bytes <= kSmall ? kSegment : round_up(std::max(bytes, reserved / kGrowth), kSegment);
  size = std::max(bytes, std::min(size, room));
  void* data = backend_->allocate(backend_->context, size);
  if (!data && size > bytes) data = backend_->allocate(backend_->context, size = bytes);
  if (!data) throw OutOfMemory(report(bytes));
  ++stats_.allocations;
  stats_.cached += size;
  Pool& into = pool(bytes);
  into.segments.emplace(static_cast<char*>(data), size);
  into.add_gap(static_cast<char*>(data), size);
}

void Allocator::release(Block block, MemoryGroup group) {
  if (!block.data) return;
  std::lock_guard lock(mutex_);
  stats_.live -= block.bytes;
  stats_.groups[group] -= block.bytes;
  stats_.cached += block.bytes;
  Pool& into = pool(block.bytes);
  char* data = static_cast<char*>(block.data);
  size_t bytes = block.bytes;
  // The gap behind, then the one in front; two segments may be neighbours by chance, and stay apart.
  const auto next = into.gaps.lower_bound(data);
  if (next != into.gaps.end() && next->first == data + bytes && !into.segments.contains(next->first)) {
    const auto [behind, size] = *next;
    bytes += size;
    into.remove_gap(behind, size);
  }
  if (const auto after = into.gaps.lower_bound(data); after != into.gaps.begin() && !into.segments.contains(data)) {
    const auto [front, size] = *std::prev(after);
    if (front + size == data) {
      into.remove_gap(front, size);
      data = front;
      bytes += size;
    }
  }
  into.add_gap(data, bytes);
}

std::vector<Allocator::Block> Allocator::detach_cached() {
  std::lock_guard lock(mutex_);
  std::vector<Block> free;
  for (Pool* pool : {&small_, &large_}) {
    for (auto segment = pool->segments.begin(); segment != pool->segments.end();) {
      const auto [data, bytes] = *segment;
      const auto gap = pool->gaps.find(data);
      if (gap == pool->gaps.end() || gap->second != bytes) {
        ++segment;
        continue;
      }
      pool->remove_gap(data, bytes);
      segment = pool->segments.erase(segment);
      stats_.cached -= bytes;
      free.push_back({data, bytes});
    }
  }
  return free;
}

void Allocator::free_segments(const std::vector<Block>& segments) {
  for (const Block& segment : segments) backend_->release(backend_->context, segment.data, segment.bytes);
}

MemoryStats Allocator::stats() {
  std::lock_guard lock(mutex_);
  return stats_;
}

void Allocator::reset_peak() {
  std::lock_guard lock(mutex_);
  stats_.peak = stats_.live;
}

void Allocator::set_limit(size_t bytes, std::string limited_by) {
  std::lock_guard lock(mutex_);
  stats_.limit = bytes;
  limited_by_ = std::move(limited_by);
}

std::string Allocator::report(size_t bytes) {
  std::string text = "out of memory on " + std::string(backend_->name) + ": " + mebibytes(bytes) + " asked for, " +
                     mebibytes(stats_.live) + " in use of " + mebibytes(stats_.limit) +
                     (limited_by_.empty() ? "" : ", " + limited_by_) + " (";
  for (int i = 0; i < kGroupCount; ++i) {
    if (i) text += ", ";
    text += std::string(kGroupNames[i]) + " " + mebibytes(stats_.groups[i]);
  }
  return text + "); " + mebibytes(stats_.cached) + " cached. Use a smaller batch, clip or model, or bf16.";
}

}  // namespace ltx
