// The matrix product inside the convolutions: y (rows, columns) = a (rows, K) b (K, columns), where a row of `a` is
// gathered from an activation, K = taps x channels, and b is the weight as it lies. Forward and the data gradient
// differ in which taps a block visits and where its rows read; both are `Pass`es of the one kernel below.
//
// A block holds kM x kN sums in registers and goes through K in steps of 64 bytes a row. cp.async fills a ring of
// shared-memory stages ahead of the sums, one barrier a step. Every stage is made of 16-byte pieces at exclusive-or
// places: eight rows of one column lie in eight different bank groups, for ldmatrix and for the copies, without
// padding.
//
// Why these tiles, for sm_86 (A10: 72 SMs of 100 KB, 1024 bf16 FLOP a clock and SM, L2 about 16 bytes a clock and SM):
//   tile      warps      FLOP a byte from L2   ring              blocks an SM  warps an SM
//   128 x 128 8 (64x32)  64                    3 x 16 KB          2             16
//   128 x  64 4 (64x32)  43                    4 x 12 KB          2              8
//    64 x  64 4 (32x32)  32                    3 x  8 KB          3             12
//   128 x  32 4 (32x32)  26                    3 x 10 KB          3             12
// 1024 FLOP over 16 bytes is 64: only the first tile keeps the tensor cores fed from L2, so it takes the large layers;
// two blocks of it, 128 registers a thread, overlap one's prologue and stores with the other's sums. A 64 x 32 warp
// tile reads 3 KB of shared memory for 64 clocks of sums (24 of them at 128 bytes a clock, 12 more for the copies); 32
// x 32 reads 2 KB for 32 clocks, which is still half of what there is. The smaller tiles waste less where columns or
// positions are few. One step is 32 products a warp against some 60 integer instructions, so places are computed anew
// at every step from a table of four entries (one a 16-byte column) instead of being kept in registers.
//
// f32 has no tensor cores that are exact: 8 x 8 (or 4 x 8) sums a thread, 16 fused multiply-adds for every 16 bytes of
// shared memory. 128 x 128 takes up to 254 registers a thread and one block of 4 stages an SM, 64 x 64 up to 168 and
// three of 3 stages.
#pragma once
#include <limits>

#include "conv3d.cuh"
#include "weights.cuh"

namespace ltx::cuda {

constexpr int kPieces = 4;            // 16-byte pieces of a row in a step
constexpr int kWarpColumns = 32;      // of every warp's tile
constexpr int kNowhere = -(1 << 30);  // as a coordinate: outside, whatever is added
template <class T>
inline constexpr int kStep = kPieces * 16 / static_cast<int>(sizeof(T));  // of K, in elements

template <int M, int N, int WarpM, int Stages, int Blocks>
struct Tile {
  static constexpr int kM = M, kN = N, kWarpM = WarpM, kStages = Stages, kBlocks = Blocks;
  static constexpr int kWarpsN = N / kWarpColumns;
  static constexpr int kThreads = kWarp * (M / WarpM) * kWarpsN;
  static constexpr int kStage = (M + N) * kPieces;  // pieces
};

// The piece of column `column` of a row, in a tile with kColumns pieces a row.
template <int kColumns>
LTX_DEVICE int swizzled(int row, int column) {
  static_assert(kColumns >= 4 && (kColumns & (kColumns - 1)) == 0);
  return row * kColumns + (column ^ (kColumns == 4 ? row >> 1 & 3 : row & 7));
}

// What the pieces of one column read in one step: coordinates to add to a row's own, the first channel, and the weight
// there. With `ends`, t is a frame itself, for rows that have that bit only.
struct alignas(16) Step {
  int t, h, w, channel;
  int weight, ends;  // weight < 0: past the last tap
};

template <class Tile, class Taps>
struct Workspace {
  struct Cursor {
    Taps taps;
    int channel;
  };
  uint4 ring[Tile::kStages * Tile::kStage];  // stages of a (kM, 4) and b (kN, 4) pieces
  Step table[2][kPieces];                    // of the step to copy next and of the one behind it
  Cursor cursors[kPieces];
  int positions[Tile::kM];  // in y, of the rows
};

template <class T>
struct Problem {
  Conv3d s;
  const T* a;  // x or dy
  const T* w;
  const float* bias;  // (columns) or null
  const T* residual;  // like y, or null
  T* y;
  float* partials;  // (splits, positions of y, columns): sums of parts of K, when there are several
  int channels;     // of a row of a, in whole pieces
  int w_channels;   // of a row of w, in whole pieces
  int columns, row_tiles, column_tiles, splits;
  int64_t count;  // elements of y
  bool whole;     // y's rows are whole pieces
};

// Sums of a warp's tile: kWarpM x 32, kWarpM of them in a thread.
template <class T, int kWarpM, bool kTransposed, int kN>
struct Sums;

// Tensor cores: 16 x 8 products of 16.
template <int kWarpM, bool kTransposed, int kN>
struct Sums<bf16, kWarpM, kTransposed, kN> {
  float sum[kWarpM / 16][kWarpColumns / 8][4] = {};

  // a: (kM, 4) pieces; b: (kN, 4) pieces, or, kTransposed, (32, kN / 8): a row for every element of K.
  LTX_DEVICE void add(const uint4* a, const uint4* b, int warp_row, int warp_column) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      uint32_t fa[kWarpM / 16][4], fb[kWarpColumns / 16][4];
#pragma unroll
      for (int i = 0; i < kWarpM / 16; ++i) {
        ldmatrix(fa[i], a + swizzled<kPieces>(warp_row + 16 * i + lane % 16, 2 * k + lane / 16));
      }
#pragma unroll
      for (int j = 0; j < kWarpColumns / 16; ++j) {
        if constexpr (kTransposed) {
          ldmatrix_transposed(fb[j], b + swizzled<kN / 8>(16 * k + lane % 16, warp_column / 8 + 2 * j + lane / 16));
        } else {
          ldmatrix(fb[j], b + swizzled<kPieces>(warp_column + 16 * j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        }
      }
#pragma unroll
      for (int i = 0; i < kWarpM / 16; ++i) {
#pragma unroll
        for (int j = 0; j < kWarpColumns / 8; ++j) {
          mma_bf16(sum[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  // Rows 16 i to 16 i + 15 of the warp's tile.
  LTX_DEVICE void put(int i, float* to, int stride) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int j = 0; j < kWarpColumns / 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        store(to + (lane / 4 + 8 * half) * stride + 8 * j + 2 * (lane % 4),
              Floats<2>{{sum[i][j][2 * half], sum[i][j][2 * half + 1]}});
      }
    }
  }
};

// f32: plain fused multiply-adds, so that sums are exact to f32. A lane has rows lane % 8 + 8 i: the eight lanes of a
// shared-memory phase read eight rows of one column (no conflict) and the same piece of b (a broadcast).
template <int kWarpM, bool kTransposed, int kN>
struct Sums<float, kWarpM, kTransposed, kN> {
  static constexpr int kRows = kWarpM / 8, kColumns = kWarpColumns / 4;
  float sum[kRows][kColumns] = {};

  LTX_DEVICE static int column(int j) {
    const int lane = threadIdx.x % kWarp;
    return kTransposed ? 16 * (j / 4) + lane / 8 * 4 + j % 4 : lane / 8 + 4 * j;
  }
  LTX_DEVICE void add(const uint4* a, const uint4* b, int warp_row, int warp_column) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      Floats<4> fa[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) fa[i] = piece(a + swizzled<kPieces>(warp_row + lane % 8 + 8 * i, k));
      if constexpr (kTransposed) {
#pragma unroll
        for (int l = 0; l < 4; ++l) {
#pragma unroll
          for (int j = 0; j < kColumns; j += 4) {
            const Floats<4> fb = piece(b + swizzled<kN / 4>(4 * k + l, (warp_column + column(j)) / 4));
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
#pragma unroll
              for (int c = 0; c < 4; ++c) sum[i][j + c] = fmaf(fa[i][l], fb[c], sum[i][j + c]);
            }
          }
        }
      } else {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const Floats<4> fb = piece(b + swizzled<kPieces>(warp_column + column(j), k));
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int l = 0; l < 4; ++l) sum[i][j] = fmaf(fa[i][l], fb[l], sum[i][j]);
          }
        }
      }
    }
  }
  LTX_DEVICE static Floats<4> piece(const uint4* from) { return load<4>(reinterpret_cast<const float*>(from)); }

  LTX_DEVICE void put(int i, float* to, int stride) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) to[(lane % 8 + 8 * half) * stride + column(j)] = sum[2 * i + half][j];
    }
  }
};

// Adds bias and residual to neighbouring sums of a position and stores them, from `column` on; or leaves that to
// sum_partials when these are only a part.
template <class T>
LTX_DEVICE void finish(const Problem<T>& p, int position, int column, Floats<kVector<T>> sums) {
  const int64_t at = static_cast<int64_t>(position) * p.columns + column;
  if (p.splits > 1) {
    float* to = p.partials + blockIdx.y * p.count + at;
    if (p.whole) {
#pragma unroll
      for (int j = 0; j < kVector<T>; j += 4) {
        store(to + j, Floats<4>{{sums[j], sums[j + 1], sums[j + 2], sums[j + 3]}});
      }
    } else {
      for (int j = 0; j < kVector<T>; ++j) {
        if (column + j < p.columns) to[j] = sums[j];
      }
    }
  } else if (p.whole) {
    if (p.bias) {
#pragma unroll
      for (int j = 0; j < kVector<T>; j += 4) {
        const Floats<4> bias = load<4>(p.bias + column + j);
#pragma unroll
        for (int l = 0; l < 4; ++l) sums[j + l] += bias[l];
      }
    }
    if (p.residual) {
      const Floats<kVector<T>> residual = load<kVector<T>>(p.residual + at);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) sums[j] += residual[j];
    }
    store(p.y + at, sums);
  } else {
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      if (column + j >= p.columns) continue;
      float sum = sums[j];
      if (p.bias) sum += p.bias[column + j];
      if (p.residual) sum += static_cast<float>(p.residual[at + j]);
      p.y[at + j] = T(sum);
    }
  }
}

// A Pass is made by every thread from the geometry and the number of its tile of rows. It has
//   kTransposed        whether the weight's rows run along y's columns, and K from row to row
//   taps()             how many taps the tile visits, and Taps, which goes through them: next(pass), step(pass, ...)
//   row(i), Row        where row i of the tile starts to read
//   source(row, step)  the position that it reads in a step, -1 for zeros
//   position(i)        of y's row i of the tile, -1 for none
template <class T, class Tile, class Pass>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) convolve(Problem<T> p) {
  constexpr int kV = kVector<T>, kRows = Tile::kThreads / kPieces, kStages = Tile::kStages;
  using Shared = Workspace<Tile, typename Pass::Taps>;
  LTX_DYNAMIC_SHARED(Shared, shared);
  uint4* const ring = shared->ring;
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const int piece = thread % kPieces;
  // Neighbouring blocks share their rows of `a`, which are the larger part of what is read.
  const int first_column = static_cast<int>(blockIdx.x % p.column_tiles) * Tile::kN;
  const Pass pass(p.s, static_cast<int>(blockIdx.x / p.column_tiles), p.row_tiles, Tile::kM);
  for (int i = thread; i < Tile::kM; i += Tile::kThreads) shared->positions[i] = pass.position(i);

  typename Pass::Row rows[Tile::kM / kRows];
#pragma unroll
  for (int i = 0; i < Tile::kM / kRows; ++i) rows[i] = pass.row(thread / kPieces + i * kRows);

  const int all_steps = (pass.taps() * p.channels + kStep<T> - 1) / kStep<T>;
  const int begin = all_steps * static_cast<int>(blockIdx.y) / p.splits;
  const int steps = all_steps * (static_cast<int>(blockIdx.y) + 1) / p.splits - begin;

  // The first threads each follow one piece through the taps, a step ahead of the copies. Where they are lies in shared
  // memory: registers would be taken from all threads.
  if (thread < kPieces) shared->cursors[thread] = {typename Pass::Taps(pass), begin * kStep<T> + thread * kV};
  const auto publish = [&](int step) {
    if (thread >= kPieces) return;
    auto cursor = shared->cursors[thread];
    for (; cursor.channel >= p.channels; cursor.channel -= p.channels) cursor.taps.next(pass);
    shared->table[step % 2][thread] = cursor.taps.step(pass, cursor.channel, p.w_channels);
    cursor.channel += kStep<T>;
    shared->cursors[thread] = cursor;
  };
  const auto fetch = [&](int index) {
    uint4* const a = ring + index % kStages * Tile::kStage;
    uint4* const b = a + Tile::kM * kPieces;
    const Step* const entries = shared->table[index % 2];
    const Step step = entries[piece];
#pragma unroll
    for (int i = 0; i < Tile::kM / kRows; ++i) {
      const int source = pass.source(rows[i], step);
      const T* from = p.a + (source < 0 ? 0 : static_cast<int64_t>(source) * p.channels + step.channel);
      cp_async(a + swizzled<kPieces>(thread / kPieces + i * kRows, piece), from, source >= 0);
    }
    if constexpr (Pass::kTransposed) {
      constexpr int kColumns = Tile::kN / kV, kSlices = Tile::kThreads / kColumns;
      const int column = thread % kColumns;
#pragma unroll
      for (int k = thread / kColumns; k < kStep<T>; k += kSlices) {
        const Step& row = entries[k / kV];
        const int out = row.channel + k % kV, in = first_column + column * kV;
        const bool valid = row.weight >= 0 && out < p.s.out && in < p.w_channels;
        const T* from = p.w + (valid ? static_cast<int64_t>(out) * p.s.taps() * p.w_channels + row.weight + in : 0);
        cp_async(b + swizzled<kColumns>(k, column), from, valid);
      }
    } else {
#pragma unroll
      for (int n = thread / kPieces; n < Tile::kN; n += kRows) {
        const bool valid = step.weight >= 0 && first_column + n < p.columns;
        const T* from =
            p.w + (valid ? static_cast<int64_t>(first_column + n) * p.s.taps() * p.w_channels + step.weight : 0);
        cp_async(b + swizzled<kPieces>(n, piece), from, valid);
      }
    }
  };

#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    publish(i);
    __syncthreads();
    if (i < steps) fetch(i);
    cp_async_commit();
  }
  publish(kStages - 1);

  Sums<T, Tile::kWarpM, Pass::kTransposed, Tile::kN> sums;
  const int warp_row = warp / Tile::kWarpsN * Tile::kWarpM, warp_column = warp % Tile::kWarpsN * kWarpColumns;
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // step i is there, and step i - 1 is read: its stage and its half of the table are free
    if (i + kStages - 1 < steps) fetch(i + kStages - 1);
    cp_async_commit();
    publish(i + kStages);
    const uint4* const a = ring + i % kStages * Tile::kStage;
    sums.add(a, a + Tile::kM * kPieces, warp_row, warp_column);
  }
  cp_async_wait<0>();
  __syncthreads();

  // Through shared memory, 16 rows of a warp at a time, so that whole pieces are stored. Eight more columns a row keep
  // the rows of a fragment in different banks.
  constexpr int kStride = kWarpColumns + 8, kPerRow = kWarpColumns / kV;
  float* const slab = reinterpret_cast<float*>(ring) + warp * 16 * kStride;
#pragma unroll
  for (int i = 0; i < Tile::kWarpM / 16; ++i) {
    sums.put(i, slab, kStride);
    __syncwarp();
#pragma unroll
    for (int row = lane / kPerRow; row < 16; row += kWarp / kPerRow) {
      const int position = shared->positions[warp_row + 16 * i + row];
      const int column = lane % kPerRow * kV;
      if (position < 0 || first_column + warp_column + column >= p.columns) continue;
      Floats<kV> values;
#pragma unroll
      for (int j = 0; j < kV; j += 4) {
        const Floats<4> part = load<4>(slab + row * kStride + column + j);
#pragma unroll
        for (int l = 0; l < 4; ++l) values[j + l] = part[l];
      }
      finish(p, position, first_column + warp_column + column, values);
    }
    __syncwarp();
  }
}

// --- the choice of a tile, from the shape alone
struct Plan {
  int tile, splits;
};

// The fastest of `tiles` on an A10, by a model of it: an SM works off its share of the blocks at a tile's speed (a part
// of the peak, multiply-adds a second and SM). Layers of few positions divide K among blocks; the parts are written and
// read again.
struct TileSpeed {
  int m, n;
  double speed;
};
template <int kCount>
Plan plan(const TileSpeed (&tiles)[kCount], double peak, int64_t rows, int phases, int columns, int64_t steps,
          int step) {
  constexpr int kProcessors = 72, kOverhead = 4;  // steps that filling the ring and storing take
  constexpr double kBandwidth = 600e9;
  Plan best{};
  double least = 0;
  for (int i = 0; i < kCount; ++i) {
    const int64_t blocks = phases * divide_up(rows, tiles[i].m) * divide_up(columns, tiles[i].n);
    for (int splits = 1; splits <= 16 && (splits == 1 || steps >= 8 * splits); ++splits) {
      const auto turns = static_cast<double>(divide_up(blocks * splits, kProcessors));
      const auto length = static_cast<double>((divide_up(steps, splits) + kOverhead) * step);
      double seconds = turns * length * tiles[i].m * tiles[i].n / (peak * tiles[i].speed);
      if (splits > 1) seconds += 3e-6 + 8.0 * splits * static_cast<double>(rows * phases * columns) / kBandwidth;
      if (best.splits && seconds >= least) continue;
      best = {i, splits};
      least = seconds;
    }
  }
  return best;
}

template <class T, class Tile, class Pass>
void launch_tile(const Call& call, Problem<T> p, int64_t rows, int phases) {
  p.row_tiles = static_cast<int>(divide_up(rows, Tile::kM));
  p.column_tiles = static_cast<int>(divide_up(p.columns, Tile::kN));
  using Shared = Workspace<Tile, typename Pass::Taps>;
  static_assert(Tile::kBlocks * (sizeof(Shared) + 1024) <= 100 << 10, "of an SM of sm_86, which keeps 1 KB a block");
  const dim3 grid(static_cast<uint32_t>(phases) * p.row_tiles * p.column_tiles, p.splits);
  LTX_LAUNCH(call, (convolve<T, Tile, Pass>), grid, Tile::kThreads, sizeof(Shared), p);
}

// rows of a phase (the largest), each with `taps` taps at most. Fills in what depends on the tile.
template <class Pass, class T>
void convolve_tiled(const Call& call, Problem<T> p, int64_t rows, int phases, int taps) {
  const int64_t weights = static_cast<int64_t>(p.s.out) * p.s.taps() * p.w_channels;
  if (weights > std::numeric_limits<int>::max()) throw std::runtime_error("a kernel of more than 2^31 weights");
  const int64_t steps = divide_up(static_cast<int64_t>(taps) * p.channels, kStep<T>);
  constexpr bool kTensorCores = sizeof(T) == 2;
  static constexpr TileSpeed kTiles[] = {{128, 128, 1.0}, {64, 64, 0.7}, {128, 64, 0.85}, {128, 32, 0.55}};
  static constexpr TileSpeed kPlain[] = {{128, 128, 0.8}, {64, 64, 0.6}};
  const Plan best = kTensorCores ? plan(kTiles, 0.87e12, rows, phases, p.columns, steps, kStep<T>)
                                 : plan(kPlain, 0.217e12, rows, phases, p.columns, steps, kStep<T>);
  p.splits = best.splits;
  if (p.splits > 1) p.partials = scratch<float>(call, 2, p.splits * p.count);
  switch (best.tile) {
    case 0:
      launch_tile<T, Tile<128, 128, 64, kTensorCores ? 3 : 4, kTensorCores ? 2 : 1>, Pass>(call, p, rows, phases);
      break;
    case 1:
      launch_tile<T, Tile<64, 64, 32, 3, 3>, Pass>(call, p, rows, phases);
      break;
    case 2:
      if constexpr (kTensorCores) launch_tile<T, Tile<128, 64, 64, 4, 2>, Pass>(call, p, rows, phases);
      break;
    default:
      if constexpr (kTensorCores) launch_tile<T, Tile<128, 32, 32, 3, 3>, Pass>(call, p, rows, phases);
  }
  if (p.splits > 1) sum_partials(call, p.partials, p.splits, p.count, p.columns, p.bias, p.residual, p.y);
}

}  // namespace ltx::cuda
