// Products of packed tiles, blocked for the caches and shared by all threads. C (rows, columns) = A B, summed over
// `steps` times kDepth elements. What A and B are is known to the functions that pack them alone:
// pack_left(Part) and pack_right(Part) write the panels of kernels.h, zeros behind the edges, in any order. store(row
// block, column block, sums, add) gets each finished block, whose sums it may change, once, or in parts that have to be
// added up where `add` says so. The order of all sums depends on the sizes alone.
#pragma once
#include <algorithm>

#include "kernels.h"

namespace ltx::cpu {

struct Product {
  int64_t rows, columns, steps;
  int64_t row_blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
  int64_t column_blocks() const { return (columns + kBlockColumns - 1) / kBlockColumns; }
};

// Blocks of 32 rows or columns, and of each the steps, that are to be packed: step s of block b goes to at(b, s).
struct Part {
  int64_t block, blocks, begin, end;
  char* out;
  int64_t block_bytes, step_bytes;
  char* at(int64_t b, int64_t s) const { return out + (b - block) * block_bytes + (s - begin) * step_bytes; }
};

namespace multiply_detail {

// What stays in a thread's second-level cache: right panels, and beside them left ones, sums and what is being packed.
template <class Kernel>
constexpr int64_t kRightBytes = (Kernel::Format::kPlanes == 1 ? 512 : 1024) << 10;
template <class Kernel>
constexpr int64_t kOwnRightBytes = (Kernel::Format::kPlanes == 1 ? 256 : 768) << 10;
constexpr int64_t kLeftBytes = 16 << 20;  // packed once for all threads
constexpr int kScratch = 8;

template <class Format>
constexpr int64_t kStepBytes = 2 * kTileBytes* Format::kPlanes;
template <class Kernel>
constexpr int64_t kPanelSteps = Kernel::Format::kPlanes == 1 ? 12 : 4;

// The share of item `id` of `count` in [0, n).
inline std::pair<int64_t, int64_t> share(int64_t n, int id, int count) {
  return {n * id / count, n * (id + 1) / count};
}

}  // namespace multiply_detail

// Threads share the rows: all of them read the same right panels.
template <class Kernel, class PackLeft, class PackRight, class Store>
void multiply_by_rows(const Product& p, PackLeft&& pack_left, PackRight&& pack_right, Store&& store) {
  using namespace multiply_detail;
  constexpr int64_t left_step = kStepBytes<typename Kernel::Format>, panel_steps = kPanelSteps<Kernel>;
  constexpr int64_t right_step = kStepBytes<typename Kernel::RightFormat>;
  const int threads = omp_get_max_threads();
  const int64_t group = std::min<int64_t>(p.column_blocks(), Kernel::Format::kPlanes == 1 ? 16 : 8);
  const int64_t chunk =
      std::clamp(kRightBytes<Kernel> / (group * right_step) / panel_steps * panel_steps, panel_steps, p.steps);
  const int64_t most_blocks = (p.row_blocks() + threads - 1) / threads;
  const int64_t sums_size = (chunk < p.steps ? most_blocks : 1) * group * kBlockSums;
  const int64_t right_bytes = group * chunk * right_step, left_bytes = panel_steps * left_step;
  const int64_t own_bytes = left_bytes + sums_size * 4;
  char* buffer = scratch<char>(kScratch, right_bytes + threads * own_bytes);
#pragma omp parallel num_threads(threads)
  {
    const int id = omp_get_thread_num(), count = omp_get_num_threads();
    typename Kernel::Thread state;
    char* left = buffer + right_bytes + id * own_bytes;
    float* sums = reinterpret_cast<float*>(left + left_bytes);
    const auto [first_row, last_row] = share(p.row_blocks(), id, count);
    for (int64_t column = 0; column < p.column_blocks(); column += group) {
      const int64_t columns = std::min(group, p.column_blocks() - column);
      for (int64_t begin = 0; begin < p.steps; begin += chunk) {
        const int64_t end = std::min(p.steps, begin + chunk);
#pragma omp barrier
        const auto [own_begin, own_end] = share(end - begin, id, count);
        pack_right(Part{column, columns, begin + own_begin, begin + own_end, buffer + own_begin * right_step,
                        (end - begin) * right_step, right_step});
#pragma omp barrier
        for (int64_t row = first_row; row < last_row; ++row) {
          float* block = sums + (chunk < p.steps ? row - first_row : 0) * group * kBlockSums;
          for (int64_t s = begin; s < end; s += panel_steps) {
            const int64_t stop = std::min(end, s + panel_steps);
            pack_left(Part{row, 1, s, stop, left, left_bytes, left_step});
            for (int64_t c = 0; c < columns; ++c) {
              Kernel::multiply(left, buffer + (c * (end - begin) + s - begin) * right_step, stop - s,
                               block + c * kBlockSums, s > 0);
            }
          }
          for (int64_t c = 0; c < columns && end == p.steps; ++c) store(row, column + c, block + c * kBlockSums, false);
        }
      }
    }
  }
}

// Threads share the columns: each packs its own right panels, and all read the same left ones, which are packed first
// (a part of the steps at a time, where they are many: then sums are stored in parts).
template <class Kernel, class PackLeft, class PackRight, class Store>
void multiply_by_columns(const Product& p, PackLeft&& pack_left, PackRight&& pack_right, Store&& store) {
  using namespace multiply_detail;
  constexpr int64_t left_step = kStepBytes<typename Kernel::Format>;
  constexpr int64_t right_step = kStepBytes<typename Kernel::RightFormat>;
  const int threads = omp_get_max_threads();
  const int64_t part = std::clamp<int64_t>(kLeftBytes / (p.row_blocks() * left_step), 1, p.steps);
  const int64_t group = std::min<int64_t>((p.column_blocks() + threads - 1) / threads, 8);
  const int64_t chunk = std::clamp<int64_t>(kOwnRightBytes<Kernel> / (group * right_step), 1, part);
  const int64_t sums_size = (chunk < part ? p.row_blocks() : 1) * group * kBlockSums;
  const int64_t left_bytes = p.row_blocks() * part * left_step, right_bytes = group * chunk * right_step;
  const int64_t own_bytes = right_bytes + sums_size * 4;
  char* buffer = scratch<char>(kScratch, left_bytes + threads * own_bytes);
#pragma omp parallel num_threads(threads)
  {
    const int id = omp_get_thread_num(), count = omp_get_num_threads();
    typename Kernel::Thread state;
    char* right = buffer + left_bytes + id * own_bytes;
    float* sums = reinterpret_cast<float*>(right + right_bytes);
    const auto [first_column, last_column] = share(p.column_blocks(), id, count);
    for (int64_t start = 0; start < p.steps; start += part) {
      const int64_t stop = std::min(p.steps, start + part);
#pragma omp barrier
      const auto [own_start, own_stop] = share(stop - start, id, count);
      pack_left(Part{0, p.row_blocks(), start + own_start, start + own_stop, buffer + own_start * left_step,
                     (stop - start) * left_step, left_step});
#pragma omp barrier
      for (int64_t column = first_column; column < last_column; column += group) {
        const int64_t columns = std::min(group, last_column - column);
        for (int64_t begin = start; begin < stop; begin += chunk) {
          const int64_t end = std::min(stop, begin + chunk);
          pack_right(Part{column, columns, begin, end, right, (end - begin) * right_step, right_step});
          for (int64_t row = 0; row < p.row_blocks(); ++row) {
            float* block = sums + (chunk < part ? row : 0) * group * kBlockSums;
            for (int64_t c = 0; c < columns; ++c) {
              Kernel::multiply(buffer + (row * (stop - start) + begin - start) * left_step,
                               right + c * (end - begin) * right_step, end - begin, block + c * kBlockSums,
                               begin > start);
            }
            for (int64_t c = 0; c < columns && end == stop; ++c)
              store(row, column + c, block + c * kBlockSums, start > 0);
          }
        }
      }
    }
  }
}

// Left panels that are packed once must all fit for an output that can't be added to.
template <class Kernel>
bool left_fits(const Product& p) {
  return p.row_blocks() * p.steps * multiply_detail::kStepBytes<typename Kernel::Format> <= multiply_detail::kLeftBytes;
}

}  // namespace ltx::cpu
