// Mean and sum of squared deviations of columns, in one pass over x and in an order that depends on the shape alone.
#pragma once
#include "any_float.cuh"
#include "columns.cuh"

namespace ltx::cuda {

// add() is Chan's update.
struct Moments {
  float count, mean, squares;
  LTX_DEVICE void add(const Moments& other) {
    if (other.count == 0.0f) return;
    const float total = count + other.count, delta = other.mean - mean, share = other.count / total;
    mean += delta * share;
    squares += other.squares + delta * delta * count * share;
    count = total;
  }
};

// moments (runs, slabs, 2, columns) = mean, squares. A thread measures from the first value it sees: a value far from
// the others then spoils no more digits than it adds to the deviations.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) moments_of_slabs(Slabs s, const T* x, float* moments) {
  LTX_DYNAMIC_SHARED(float, shared);  // (row_lanes, 2, lanes * V)
  const int width = blockDim.x * V;
  const Place place(s, V);
  Floats<V> sum = filled<V>(0.0f), squares = filled<V>(0.0f), pivot = filled<V>(0.0f);
  const int64_t first = place.begin + threadIdx.y;
  float count = 0.0f;
  if (place.column < s.columns && first < place.end) {
    pivot = load<V>(x + first * s.columns + place.column);
    count = 1.0f;
#pragma unroll 4
    for (int64_t row = first + blockDim.y; row < place.end; row += blockDim.y) {
      const Floats<V> value = load<V>(x + row * s.columns + place.column);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float deviation = value[j] - pivot[j];
        sum[j] += deviation;
        squares[j] += deviation * deviation;
      }
      count += 1.0f;
    }
  }
  float* const own = shared + threadIdx.y * 2 * width + threadIdx.x * V;
  const float share = 1.0f / fmaxf(count, 1.0f);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    own[j] = pivot[j] + sum[j] * share;
    own[width + j] = squares[j] - sum[j] * sum[j] * share;
  }
  __syncthreads();
  const int rows = static_cast<int>(place.end - place.begin), lanes = static_cast<int>(blockDim.y);
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < width; i += blockDim.x * blockDim.y) {
    const int64_t column = blockIdx.x % s.tiles * width + i;
    if (column >= s.columns) continue;
    Moments all{0.0f, 0.0f, 0.0f};
    for (int lane = 0; lane < min(lanes, rows); ++lane) {
      const int lane_rows = (rows - lane + lanes - 1) / lanes;
      all.add({static_cast<float>(lane_rows), shared[lane * 2 * width + i], shared[(lane * 2 + 1) * width + i]});
    }
    moments[place.unit * 2 * s.columns + column] = all.mean;
    moments[(place.unit * 2 + 1) * s.columns + column] = all.squares;
  }
}

constexpr int kMergeLanes = 8, kMergeRows = kThreads / kMergeLanes;

// slabs (runs, s.slabs, 2, columns) to moments (runs, 2, columns).
template <class S>
__global__ void __launch_bounds__(kThreads) merge_slabs(S s, const float* slabs, float* moments) {
  LTX_SHARED(Moments, shared, [kMergeRows][kMergeLanes]);
  const int64_t tiles = (s.columns + kMergeLanes - 1) / kMergeLanes, run = blockIdx.x / tiles;
  const int64_t column = blockIdx.x % tiles * kMergeLanes + threadIdx.x;
  Moments all{0.0f, 0.0f, 0.0f};
  for (int64_t slab = threadIdx.y; slab < s.slabs && column < s.columns; slab += kMergeRows) {
    const float* part = slabs + (run * s.slabs + slab) * 2 * s.columns + column;
    all.add({static_cast<float>(min(s.slab_rows, s.run - slab * s.slab_rows)), part[0], part[s.columns]});
  }
  shared[threadIdx.y][threadIdx.x] = all;
  __syncthreads();
  if (threadIdx.y != 0 || column >= s.columns) return;
  for (int lane = 1; lane < kMergeRows; ++lane) all.add(shared[lane][threadIdx.x]);
  moments[run * 2 * s.columns + column] = all.mean;
  moments[(run * 2 + 1) * s.columns + column] = all.squares;
}

// moments (rows / run, 2, columns) f32 = mean and sum of squared deviations over each run of rows of x, of which there
// are some. Uses scratch slot 5.
template <class T>
void column_moments(const Call& call, const T* x, int64_t rows, int64_t run, int64_t columns, float* moments) {
  dispatch_width<T>(columns, {x}, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const Slabs s(rows, run, columns, V, 1024);
    float* parts = s.slabs == 1 ? moments : scratch<float>(call, 5, s.runs * s.slabs * 2 * columns);
    LTX_LAUNCH(call, (moments_of_slabs<T, V>), s.grid(), s.block(),
               size_t{s.lanes} * s.row_lanes * V * 2 * sizeof(float), s, x, parts);
    if (s.slabs == 1) return;
    const dim3 grid(static_cast<uint32_t>(s.runs * divide_up(columns, kMergeLanes)));
    LTX_LAUNCH(call, merge_slabs<Slabs>, grid, dim3(kMergeLanes, kMergeRows), 0, s, parts, moments);
  });
}

}  // namespace ltx::cuda
