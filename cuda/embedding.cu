// Rows of a table: looked up, and gradients brought back to them.
#include <stdexcept>
#include <string>

#include "map.cuh"

namespace ltx::cuda {
namespace {

// A warp has kRows rows of the table and 32 N of its columns. It goes through the indices 32 at a time: whoever finds
// one of its rows raises a hand, and the rows of dy behind the hands are added from the lowest lane to the highest,
// which is the order of the indices. Nothing is written by two threads.
template <class T, int N, int kRows>
__global__ void __launch_bounds__(kThreads)
    scatter(const T* dy, const int32_t* index, float* table, int64_t count, int64_t rows, int64_t columns) {
  constexpr int kBatch = kRows == 1 ? 8 : 2;  // rows of dy on the way at once; in a large table a row has few
  const int lane = threadIdx.x % kWarp;
  const int64_t strips = (columns + kWarp * N - 1) / (kWarp * N);
  const int64_t unit = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const int64_t first = unit / strips * kRows, column = (unit % strips * kWarp + lane) * N;
  if (first >= rows) return;  // the whole warp
  const bool inside = column < columns;
  Floats<N> sums[kRows] = {};
  for (int64_t begin = 0; begin < count; begin += kWarp) {
    const int64_t own = begin + lane < count ? index[begin + lane] - first : -1;
    const int found = own >= 0 && own < kRows ? static_cast<int>(own) : -1;
    uint32_t hands = __ballot_sync(0xFFFFFFFFu, found >= 0);
    while (hands) {
      Floats<N> values[kBatch];
      int row[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int source = hands ? __popc((hands & (0u - hands)) - 1) : 0;
        const int there = __shfl_sync(0xFFFFFFFFu, found, source);
        row[k] = hands ? there : -1;
        if (hands && inside) values[k] = load<N>(dy + (begin + source) * columns + column);
        hands &= hands - 1;
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          // A choice, not a branch, or the sums would lie in memory.
#pragma unroll
          for (int j = 0; j < N; ++j) sums[r][j] += row[k] == r && inside ? values[k][j] : 0.0f;
        }
      }
    }
  }
  if (!inside) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (first + r < rows) store(table + (first + r) * columns + column, sums[r]);
  }
}

// On the host, before anything is launched: what a kernel found would be known too late to tell whose failure it is.
void check(Operand index, int64_t rows) {
  const auto* known = static_cast<const int32_t*>(index.tensor->host);
  if (!known && index.size()) throw std::runtime_error("the index was not written as a whole");
  for (int64_t i = 0; i < index.size(); ++i) {
    if (known[i] >= 0 && known[i] < rows) continue;
    throw std::runtime_error("index " + std::to_string(known[i]) + " at position " + std::to_string(i) +
                             " is outside the table's " + std::to_string(rows) + " rows");
  }
}

template <class T, int N, int kRows>
void launch_scatter(const Call& call, Operand dy, Operand index, Operand table) {
  const int64_t rows = table.rows(), columns = table.columns();
  const int64_t warps = divide_up(rows, kRows) * divide_up(columns, kWarp * N);
  const int64_t blocks = divide_up(warps * kWarp, kThreads);
  LTX_LAUNCH(call, (scatter<T, N, kRows>), dim3(static_cast<uint32_t>(blocks)), kThreads, 0, dy.data<const T>(),
             index.data<const int32_t>(), table.data<float>(), index.size(), rows, columns);
}

}  // namespace

void gather_rows(const Call& call) {
  check(call[1], call[0].rows());
  map_to(call, call[2], Same{}, Gathered{call[0], call[1]});
}

void scatter_rows(const Call& call) {
  const Operand dy = call[0], index = call[1], table = call[2];
  check(index, table.rows());
  if (!table.size()) return;
  dispatch(dy, [&](auto tag) {
    using T = decltype(tag);
    // Every warp reads all indices: rows share that in a large table, in a small one more warps matter more.
    const bool large = table.rows() > 2048;
    if (table.columns() % 4 == 0 && fits(dy, 4) && fits(table, 4)) {
      large ? launch_scatter<T, 4, 8>(call, dy, index, table) : launch_scatter<T, 4, 1>(call, dy, index, table);
    } else {
      large ? launch_scatter<T, 1, 8>(call, dy, index, table) : launch_scatter<T, 1, 1>(call, dy, index, table);
    }
  });
}

}  // namespace ltx::cuda
