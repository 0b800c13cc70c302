// Sums over rows that depend on the shape alone: blocks sum slabs of rows, and the slabs' sums are summed in turn.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "common.cuh"

namespace ltx::cuda {

// How rows of `columns` values, in runs of `run` rows, are cut into blocks of (lanes, row_lanes) threads: each thread
// has V columns and every row_lanes-th row of a slab, which lies in one run. A thread's rows stay below kChain, for the
// accuracy of a sum.
struct Slabs {
  static constexpr int64_t kChain = 128;
  int64_t run, columns, runs;
  int64_t tiles;  // blocks side by side
  int64_t slabs;  // of a run
  int64_t slab_rows;
  uint32_t lanes, row_lanes;

  // About `blocks` blocks in all, as far as kChain and the rows allow; most_lanes: a power of two.
  Slabs(int64_t rows, int64_t run, int64_t columns, int width, int64_t blocks, int64_t most_lanes = kWarp)
      : run(run), columns(columns), runs(rows / run) {
    const int64_t vectors = divide_up(columns, width);
    lanes = row_lanes = 1;
    while (row_lanes < run && row_lanes < kThreads / most_lanes) row_lanes *= 2;
    while (lanes < vectors && lanes * row_lanes < kThreads) lanes *= 2;
    while (lanes * row_lanes < kThreads && row_lanes < run) row_lanes *= 2;
    while (lanes * row_lanes < kWarp) row_lanes *= 2;
    tiles = divide_up(vectors, lanes);
    const int64_t wanted = std::max<int64_t>(1, blocks / (runs * tiles));
    slab_rows = std::clamp<int64_t>(divide_up(run, wanted), 4 * row_lanes, kChain * row_lanes);
    slabs = divide_up(run, slab_rows);
  }
  dim3 grid() const { return dim3(static_cast<uint32_t>(runs * slabs * tiles)); }
  dim3 block() const { return dim3(lanes, row_lanes); }
};

// Where a thread stands.
struct Place {
  int64_t unit;  // run * slabs + slab
  int64_t begin, end, column;
  LTX_DEVICE Place(const Slabs& s, int width) {
    unit = blockIdx.x / s.tiles;
    const int64_t run = unit / s.slabs, offset = unit % s.slabs * s.slab_rows;
    begin = run * s.run + offset;
    end = run * s.run + min(s.run, offset + s.slab_rows);
    column = (blockIdx.x % s.tiles * blockDim.x + threadIdx.x) * width;
  }
};

// state = body.enter(row, column) reads what columns column .. column + V need for the run of that row;
// body(row, column, state) then does the work of each row.
template <int V, class Body>
__global__ void __launch_bounds__(kThreads) visit_slabs(Slabs s, Body body) {
  const Place place(s, V);
  if (place.column >= s.columns) return;
  const auto state = body.enter(place.begin, place.column);
  for (int64_t row = place.begin + threadIdx.y; row < place.end; row += blockDim.y) body(row, place.column, state);
}

// The same with body(row, column, state, sums), which adds to sums[kSums]: sums (runs, slabs, kSums, columns).
template <int kSums, int V, class Body>
__global__ void __launch_bounds__(kThreads) sum_slabs(Slabs s, Body body, float* sums) {
  LTX_DYNAMIC_SHARED(float, shared);  // (row_lanes, kSums, lanes * V)
  const int width = blockDim.x * V, outputs = kSums * width;
  const Place place(s, V);
  Floats<V> own[kSums];
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
#pragma unroll
    for (int j = 0; j < V; ++j) own[k][j] = 0.0f;
  }
  if (place.column < s.columns) {
    const auto state = body.enter(place.begin, place.column);
#pragma unroll 2
    for (int64_t row = place.begin + threadIdx.y; row < place.end; row += blockDim.y) {
      body(row, place.column, state, own);
    }
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
#pragma unroll
    for (int j = 0; j < V; ++j) shared[(threadIdx.y * kSums + k) * width + threadIdx.x * V + j] = own[k][j];
  }
  __syncthreads();
  const int64_t first = blockIdx.x % s.tiles * width;
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < outputs; i += blockDim.x * blockDim.y) {
    const int64_t column = first + i % width;
    if (column >= s.columns) continue;
    float sum = 0.0f;
    for (int lane = 0; lane < static_cast<int>(blockDim.y); ++lane) sum += shared[lane * outputs + i];
    sums[(place.unit * kSums + i / width) * s.columns + column] = sum;
  }
}

template <class T, int V>
struct AddRow {
  const T* x;  // (rows, columns)
  int64_t columns;
  struct State {};
  LTX_DEVICE State enter(int64_t, int64_t) const { return {}; }
  LTX_DEVICE void operator()(int64_t row, int64_t column, State, Floats<V> (&sums)[1]) const {
    const Floats<V> values = load<V>(x + row * columns + column);
#pragma unroll
    for (int j = 0; j < V; ++j) sums[0][j] += values[j];
  }
};

// Whether rows of `columns` elements can be read and written `width` at a time through each of the pointers, in
// accesses of at most 16 bytes.
template <class... T>
bool fits_vectors(int64_t columns, int width, const T*... pointers) {
  return columns % width == 0 &&
         ((reinterpret_cast<uintptr_t>(pointers) % std::min<size_t>(16, width * sizeof(T)) == 0) && ...);
}

// Calls body with the columns of one access as an integral constant: as many as 16 bytes of T hold, or one where the
// rows' length or the addresses do not allow that.
template <class T, class Body>
void dispatch_width(int64_t columns, std::initializer_list<const void*> addresses, Body&& body) {
  if (columns % kVector<T> == 0 && std::all_of(addresses.begin(), addresses.end(), aligned16)) {
    body(std::integral_constant<int, kVector<T>>{});
  } else {
    body(std::integral_constant<int, 1>{});
  }
}

// Calls body for each row and V columns at a time; V divides columns.
template <int V, class Body>
void visit_columns(const Call& call, int64_t rows, int64_t run, int64_t columns, const Body& body) {
  if (!rows || !columns) return;
  const Slabs s(rows, run, columns, V, 8192);
  LTX_LAUNCH(call, (visit_slabs<V, Body>), s.grid(), s.block(), 0, s, body);
}

template <int kSums, int V, class Body>
void sum_once(const Call& call, const Slabs& s, const Body& body, float* sums) {
  const size_t shared = size_t{s.lanes} * s.row_lanes * V * kSums * sizeof(float);
  LTX_LAUNCH(call, (sum_slabs<kSums, V, Body>), s.grid(), s.block(), shared, s, body, sums);
}

// out (runs, width) = the sums of partials (runs, count, width), which may lie in scratch slot 5; uses 5 and 6.
inline void combine(const Call& call, const float* partials, int64_t runs, int64_t count, int64_t width, float* out) {
  int slot = 5;
  for (bool done = false; !done;) {
    // Few rows: narrow blocks, so that there are enough of them.
    const Slabs s(runs * count, count, width, 1, 1, 8);
    done = s.slabs == 1;
    slot = slot == 5 ? 6 : 5;
    float* to = done ? out : scratch<float>(call, slot, runs * s.slabs * width);
    sum_once<1, 1>(call, s, AddRow<float, 1>{partials, width}, to);
    partials = to;
    count = s.slabs;
  }
}

// out (rows / run, kSums, columns) f32 = what body adds over each run of `run` rows; V divides columns. Uses scratch
// slots 5 and 6.
template <int kSums, int V, class Body>
void sum_columns(const Call& call, int64_t rows, int64_t run, int64_t columns, float* out, const Body& body) {
  if (!columns) return;
  if (!rows) return clear(context(call), out, kSums * columns * sizeof(float));
  const Slabs s(rows, run, columns, V, 1024);
  if (s.slabs == 1) return sum_once<kSums, V>(call, s, body, out);
  float* partials = scratch<float>(call, 5, s.runs * s.slabs * kSums * columns);
  sum_once<kSums, V>(call, s, body, partials);
  combine(call, partials, s.runs, s.slabs, kSums * columns, out);
}

// out (rows / run, columns) f32 = sums over runs of rows of x.
template <class T>
void sum_columns(const Call& call, const T* x, int64_t rows, int64_t run, int64_t columns, float* out) {
  dispatch_width<T>(columns, {x}, [&](auto width) {
    constexpr int V = decltype(width)::value;
    sum_columns<1, V>(call, rows, run, columns, out, AddRow<T, V>{x, columns});
  });
}

}  // namespace ltx::cuda
