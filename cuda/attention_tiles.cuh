// Tensor-core pieces of attention for bf16. A warp owns 16 rows of one head (queries, or keys where their gradients are
// wanted) in fragments and walks over tiles of the other side's rows, which lie in shared memory. Scores stay in
// registers: where mma leaves the accumulator of a 16 x 16 piece is where it wants that piece as its next left operand.
#pragma once
#include "attention.cuh"

namespace ltx::cuda {

LTX_DEVICE int lane_row() { return threadIdx.x % kWarp / 4; }
LTX_DEVICE int lane_column() { return threadIdx.x % 4 * 2; }

// The threads that share tiles: a block, or (kAlone) a warp that works on a problem of its own.
template <bool kAlone>
struct Team {
  int thread = kAlone ? threadIdx.x % kWarp : threadIdx.x;
  int threads = kAlone ? kWarp : blockDim.x;
  LTX_DEVICE void sync() const {
    if constexpr (kAlone) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
};

// A warp's first own row. Teams take up to 16 rows a warp of one head, and a head's teams come one after another: they
// read the same tiles.
struct WarpPlace {
  int b, head, first;
  template <bool kAlone>
  LTX_DEVICE WarpPlace(const AttentionSizes& s, int rows, const Team<kAlone>& team) {
    const int warps = team.threads / kWarp, warp = threadIdx.x / kWarp;
    const uint32_t tiles = (rows + 16 * warps - 1) / (16 * warps);
    uint32_t item = kAlone ? blockIdx.x * (blockDim.x / kWarp) + warp : blockIdx.x;
    first = item % tiles * 16 * warps + (kAlone ? 0 : warp * 16);
    item /= tiles;
    head = item % s.heads;
    b = item / s.heads;
  }
};

// Where 8 channels of a tile's row lie, in elements. The chunks of a row change places by the row's number, so that the
// 8 rows that one matrix of ldmatrix reads in the same chunk, and the chunks of a row that copies write, meet all
// banks.
template <int kHead>
LTX_DEVICE int tile_offset(int row, int chunk) {
  constexpr int kChunks = kHead / 8, kRowsOfLine = kChunks < 8 ? 8 / kChunks : 1, kTurns = kChunks < 8 ? kChunks : 8;
  return (row * kChunks + (chunk ^ (row / kRowsOfLine % kTurns))) * 8;
}

// One head of a (B, L, D) tensor.
struct HeadRows {
  const bf16* data;  // of the first row
  int pitch;         // D
  int rows, head_dim;
  LTX_DEVICE int64_t offset(int row) const { return static_cast<int64_t>(row) * pitch; }
};
LTX_DEVICE int64_t head_offset(const AttentionSizes& s, const WarpPlace& at, int rows) {
  return static_cast<int64_t>(at.b) * rows * s.width() + at.head * s.head_dim;
}
LTX_DEVICE HeadRows head_rows(const bf16* x, const AttentionSizes& s, const WarpPlace& at, int rows) {
  return {x + head_offset(s, at, rows), static_cast<int>(s.width()), rows, s.head_dim};
}

// Starts to copy kRows rows from `first` on; zeros behind the last row and channel. Not unrolled: addresses of copies
// to come would take the registers that the result needs.
template <int kHead, int kRows, bool kAlone>
LTX_DEVICE void copy_tile(bf16* tile, const HeadRows& from, int first, const Team<kAlone>& team) {
  constexpr int kChunks = kHead / 8;  // divides a team's threads
  const int chunk = team.thread % kChunks;
  const bf16* source = from.data + chunk * 8;
#pragma unroll 1
  for (int row = team.thread / kChunks; row < kRows; row += team.threads / kChunks) {
    const bool valid = first + row < from.rows && chunk * 8 < from.head_dim;
    cp_async(tile + tile_offset<kHead>(row, chunk), valid ? source + from.offset(first + row) : from.data, valid);
  }
}

// Runs use(tile, stage) over the tiles, each after its load(tile, stage). With two stages the next tile is on its way
// while one is used, and the barrier that shows a tile to all is also the one behind the last use of its memory.
template <int kStages, bool kAlone, class Load, class Use>
LTX_DEVICE void stream_tiles(const Team<kAlone>& team, int tiles, const Load& load, const Use& use) {
  const auto start = [&](int tile) {
    load(tile, tile % kStages);
    cp_async_commit();
  };
  if (tiles > 0) start(0);
  for (int tile = 0; tile < tiles; ++tile) {
    cp_async_wait<0>();
    team.sync();
    if (kStages > 1 && tile + 1 < tiles) start(tile + 1);
    use(tile, tile % kStages);
    if (kStages == 1 && tile + 1 < tiles) {
      team.sync();
      start(tile + 1);
    }
  }
}

// A warp's own 16 rows as left operands, read once.
template <int kHead>
struct Fragments {
  uint32_t a[kHead / 16][4];
  LTX_DEVICE Fragments(const HeadRows& from, int first) {
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first + lane_row() + 8 * (i & 1), channel = 16 * k + lane_column() + 8 * (i >> 1);
        a[k][i] = row < from.rows && channel < from.head_dim
                      ? *reinterpret_cast<const uint32_t*>(from.data + from.offset(row) + channel)
                      : 0u;
      }
    }
  }
  LTX_DEVICE void get(int k, uint32_t (&fragment)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) fragment[i] = a[k][i];
  }
};

// The same left in shared memory, for when registers have to hold more than they can.
template <int kHead>
struct SharedFragments {
  const bf16* tile;  // (16, kHead)
  LTX_DEVICE void get(int k, uint32_t (&fragment)[4]) const {
    const int lane = threadIdx.x % kWarp;
    ldmatrix(fragment, tile + tile_offset<kHead>(lane % 16, 2 * k + lane / 16));
  }
};

// s (16, kRows) = own (16, kHead) tile^T (kHead, kRows).
template <int kHead, int kRows, class Own>
LTX_DEVICE void score(float (&s)[kRows / 8][4], const Own& own, const bf16* tile) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[j][i] = 0.0f;
  }
#pragma unroll
  for (int k = 0; k < kHead / 16; ++k) {
    uint32_t a[4];
    own.get(k, a);
#pragma unroll
    for (int j = 0; j < kRows / 16; ++j) {
      uint32_t b[4];
      ldmatrix(b, tile + tile_offset<kHead>(16 * j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
      mma_bf16(s[2 * j], a, b[0], b[1]);
      mma_bf16(s[2 * j + 1], a, b[2], b[3]);
    }
  }
}

// out (16, kHead) += p (16, kRows), rounded to bf16, times tile (kRows, kHead).
template <int kHead, int kRows>
LTX_DEVICE void accumulate(float (&out)[kHead / 8][4], const float (&p)[kRows / 8][4], const bf16* tile) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) {
    const uint32_t a[4] = {pack_bf16(p[2 * k][0], p[2 * k][1]), pack_bf16(p[2 * k][2], p[2 * k][3]),
                           pack_bf16(p[2 * k + 1][0], p[2 * k + 1][1]), pack_bf16(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
    for (int j = 0; j < kHead / 16; ++j) {
      uint32_t b[4];
      ldmatrix_transposed(b, tile + tile_offset<kHead>(16 * k + lane % 16, 2 * j + lane / 16));
      mma_bf16(out[2 * j], a, b[0], b[1]);
      mma_bf16(out[2 * j + 1], a, b[2], b[3]);
    }
  }
}

// Writes the warp's rows of out times factor, one for rows g and one for g + 8, as far as the tensor has them.
template <int kHead>
LTX_DEVICE void write_rows(bf16* x, const AttentionSizes& s, const WarpPlace& at, int rows,
                           const float (&out)[kHead / 8][4], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = at.first + lane_row() + 8 * i;
    if (row >= rows) continue;
    uint32_t* to = reinterpret_cast<uint32_t*>(x + head_offset(s, at, rows) + row * s.width() + lane_column());
#pragma unroll
    for (int j = 0; j < kHead / 8; ++j) {
      if (8 * j < s.head_dim) to[4 * j] = pack_bf16(out[j][2 * i] * factor[i], out[j][2 * i + 1] * factor[i]);
    }
  }
}

}  // namespace ltx::cuda
