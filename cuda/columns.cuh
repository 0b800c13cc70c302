// Sums over rows that depend on the shape alone: blocks sum slabs of rows, and the slabs' sums are summed in turn.
#pragma once
#include <algorithm>

#include "common.cuh"

namespace ltx::cuda {

// How a sum over rows of `columns` values, in runs of `run` rows that are summed apart, is cut into blocks of
// (lanes, row_lanes) threads, each of V columns. A thread's chain of additions stays below kChain rows.
struct Slabs {
  static constexpr int64_t kBlocks = 1024, kLanes = 32, kChain = 128;
  int64_t run, columns, runs;
  int64_t tiles;  // blocks side by side
  int64_t slabs;  // of a run
  int64_t slab_rows;
  uint32_t lanes, row_lanes;

  Slabs(int64_t rows, int64_t run, int64_t columns, int width, bool last)
      : run(run), columns(columns), runs(rows / run) {
    const int64_t vectors = divide_up(columns, width);
    // Partial sums are few rows: narrow blocks, so that there are enough of them.
    const int64_t most = last ? 8 : kLanes;
    lanes = row_lanes = 1;
    while (lanes < most && lanes < vectors) lanes *= 2;
    while (lanes * row_lanes < kThreads && row_lanes < run) row_lanes *= 2;
    while (lanes * row_lanes < kWarp) row_lanes *= 2;
    tiles = divide_up(vectors, lanes);
    const int64_t wanted = last ? 1 : std::clamp<int64_t>(kBlocks / (runs * tiles), 1, 256);
    slab_rows = std::max<int64_t>(divide_up(run, wanted), 4 * row_lanes);
    slab_rows = std::min<int64_t>(slab_rows, kChain * row_lanes);
    slabs = divide_up(run, slab_rows);
  }
  dim3 grid() const { return dim3(static_cast<uint32_t>(runs * slabs * tiles)); }
  dim3 block() const { return dim3(lanes, row_lanes); }
};

// sums (runs, slabs, kSums, columns). body(row, column, sums) adds what columns column .. column + V of a row give to
// sums[kSums], and may write what belongs to that place elsewhere: each place is visited once.
template <int kSums, int V, class Body>
__global__ void __launch_bounds__(kThreads) sum_slabs(Slabs s, Body body, float* sums) {
  LTX_DYNAMIC_SHARED(float, shared);  // (row_lanes, kSums, lanes * V)
  const int width = blockDim.x * V, outputs = kSums * width;
  const int64_t tile = blockIdx.x % s.tiles, unit = blockIdx.x / s.tiles;
  const int64_t run = unit / s.slabs, offset = unit % s.slabs * s.slab_rows;
  const int64_t begin = run * s.run + offset, end = run * s.run + min(s.run, offset + s.slab_rows);
  const int64_t column = tile * width + threadIdx.x * V;
  Floats<V> own[kSums];
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
#pragma unroll
    for (int j = 0; j < V; ++j) own[k][j] = 0.0f;
  }
  if (column < s.columns) {
#pragma unroll 4
    for (int64_t row = begin + threadIdx.y; row < end; row += blockDim.y) body(row, column, own);
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
#pragma unroll
    for (int j = 0; j < V; ++j) shared[(threadIdx.y * kSums + k) * width + threadIdx.x * V + j] = own[k][j];
  }
  __syncthreads();
  const int threads = blockDim.x * blockDim.y;
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < outputs; i += threads) {
    const int64_t place = tile * width + i % width;
    if (place >= s.columns) continue;
    float sum = 0.0f;
    for (int lane = 0; lane < static_cast<int>(blockDim.y); ++lane) sum += shared[lane * outputs + i];
    sums[(unit * kSums + i / width) * s.columns + place] = sum;
  }
}

template <class T, int V>
struct AddRow {
  const T* x;  // (rows, columns)
  int64_t columns;
  LTX_DEVICE void operator()(int64_t row, int64_t column, Floats<V> (&sums)[1]) const {
    const Floats<V> values = load<V>(x + row * columns + column);
#pragma unroll
    for (int j = 0; j < V; ++j) sums[0][j] += values[j];
  }
};

// Whether rows of `columns` elements can be read and written `width` at a time through each of the pointers.
template <class... T>
bool fits_vectors(int64_t columns, int width, const T*... pointers) {
  return columns % width == 0 && ((reinterpret_cast<uintptr_t>(pointers) % (width * sizeof(T)) == 0) && ...);
}

// out (rows / run, kSums, columns) f32 = what body (see sum_slabs) adds over each run of `run` rows; V divides columns.
// Uses two scratch slots.
template <int kSums, int V, class Body>
void sum_columns(const Call& call, int64_t rows, int64_t run, int64_t columns, float* out, const Body& body,
                 int slot = 5) {
  if (!columns) return;
  if (!rows) return clear(context(call), out, kSums * columns * sizeof(float));
  const auto launch_on = [&](const Slabs& s, float* sums) {
    const size_t shared = size_t{s.lanes} * s.row_lanes * V * kSums * sizeof(float);
    LTX_LAUNCH(call, (sum_slabs<kSums, V, Body>), s.grid(), s.block(), shared, s, body, sums);
  };
  const Slabs first(rows, run, columns, V, false);
  if (first.slabs == 1) return launch_on(first, out);
  int64_t count = first.slabs;
  const int64_t runs = first.runs, width = kSums * columns;
  const float* sums = scratch<float>(call, slot, runs * count * width);
  launch_on(first, const_cast<float*>(sums));
  for (int turn = 1; count > 1; ++turn) {
    const Slabs s(runs * count, count, width, 1, true);
    float* to = s.slabs == 1 ? out : scratch<float>(call, slot + turn % 2, runs * s.slabs * width);
    LTX_LAUNCH(call, (sum_slabs<1, 1, AddRow<float, 1>>), s.grid(), s.block(),
               size_t{s.lanes} * s.row_lanes * sizeof(float), s, AddRow<float, 1>{sums, width}, to);
    sums = to;
    count = s.slabs;
  }
}

// out (rows / run, columns) f32 = sums over runs of rows of x.
template <class T>
void sum_columns(const Call& call, const T* x, int64_t rows, int64_t run, int64_t columns, float* out, int slot = 5) {
  if (fits_vectors(columns, kVector<T>, x)) {
    sum_columns<1, kVector<T>>(call, rows, run, columns, out, AddRow<T, kVector<T>>{x, columns}, slot);
  } else {
    sum_columns<1, 1>(call, rows, run, columns, out, AddRow<T, 1>{x, columns}, slot);
  }
}

}  // namespace ltx::cuda
