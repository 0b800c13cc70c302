// Attention's tiles in plain f32 arithmetic: for f32 tensors, and for bf16 heads that tensor cores don't take (odd or
// wider than 128). Heads of any width in chunks of 64 channels; a block makes one chunk of the result.
#pragma once
#include "attention.cuh"

namespace ltx::cuda {

constexpr int kChunk = 64;          // channels
constexpr int kPitch = kChunk + 4;  // floats between a tile's rows: 16-byte accesses, lanes' rows in different banks

// kSide x kSide scores by (kSide / kOwn)^2 threads: thread (x, y) has rows y kOwn + i and columns x + kAcross j of the
// scores, and channels 4 x + 4 kAcross j .. + 4 of the result. 64 by 4 makes 64 multiplications of eight 16-byte reads,
// which keeps the arithmetic ahead of shared memory; 16 by 2 is for short sequences, which would leave most of a larger
// tile empty.
template <int kRows, int kOfThread>
struct SimtTile {
  static constexpr int kSide = kRows, kOwn = kOfThread;
  static constexpr int kAcross = kSide / kOwn, kTileThreads = kAcross * kAcross, kBlocksOfSm = 512 / kTileThreads,
                       kFloats = kSide * kPitch;
  static constexpr int kChannels = kChunk / kAcross;  // of the result a thread has, in groups of 4
  static_assert(kSide <= kChunk && kChannels % 4 == 0);

  LTX_DEVICE static int x() { return threadIdx.x % kAcross; }
  LTX_DEVICE static int y() { return threadIdx.x / kAcross; }
  LTX_DEVICE static int row(int i) { return y() * kOwn + i; }
  LTX_DEVICE static int column(int j) { return x() + kAcross * j; }

  // Rows first .. of a head's chunk of channels; zeros behind the last row and channel.
  template <class T>
  LTX_DEVICE static void read_tile(float* tile, const T* head, int64_t pitch, int first, int rows, int channel,
                                   int head_dim) {
#pragma unroll 2
    for (int i = threadIdx.x; i < kSide * kChunk; i += kTileThreads) {
      const int row = i / kChunk, c = i % kChunk;
      const bool valid = first + row < rows && channel + c < head_dim;
      tile[row * kPitch + c] = valid ? static_cast<float>(head[(first + row) * pitch + channel + c]) : 0.0f;
    }
  }

  // s += a b^T over `depth` channels.
  LTX_DEVICE static void add_scores(float (&s)[kOwn][kOwn], const float* a, const float* b, int depth) {
#pragma unroll 1
    for (int c = 0; c < depth; c += 4) {
      Floats<4> left[kOwn], right[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        left[i] = load<4>(a + row(i) * kPitch + c);
        right[i] = load<4>(b + column(i) * kPitch + c);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
#pragma unroll
          for (int j = 0; j < kOwn; ++j) s[i][j] += left[i][k] * right[j][k];
        }
      }
    }
  }

  // s = rows of one head times rows of another, all channels of both. a, b: the shared tiles.
  template <class T>
  LTX_DEVICE static void score(float (&s)[kOwn][kOwn], float* a, float* b, const T* own, int first, int own_rows,
                               const T* other, int other_first, int other_rows, int64_t pitch, int head_dim) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) s[i][j] = 0.0f;
    }
    for (int channel = 0; channel < head_dim; channel += kChunk) {
      __syncthreads();  // whoever still reads the tiles
      read_tile(a, own, pitch, first, own_rows, channel, head_dim);
      read_tile(b, other, pitch, other_first, other_rows, channel, head_dim);
      __syncthreads();
      add_scores(s, a, b, min(kChunk, head_dim - channel));
    }
  }

  // out += p times a chunk of channels of the other side's rows. p takes a's memory.
  template <class T>
  LTX_DEVICE static void accumulate(float (&out)[kOwn][kChannels], const float (&p)[kOwn][kOwn], float* a, float* b,
                                    const T* other, int other_first, int other_rows, int64_t pitch, int channel,
                                    int head_dim) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) a[row(i) * kPitch + column(j)] = p[i][j];
    }
    read_tile(b, other, pitch, other_first, other_rows, channel, head_dim);
    __syncthreads();
    const int depth = min(kSide, other_rows - other_first);
#pragma unroll 1
    for (int r = 0; r < depth; r += 4) {
      Floats<4> left[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) left[i] = load<4>(a + row(i) * kPitch + r);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int group = 0; group < kChannels / 4; ++group) {
          const Floats<4> right = load<4>(b + (r + k) * kPitch + 4 * column(group));
#pragma unroll
          for (int i = 0; i < kOwn; ++i) {
#pragma unroll
            for (int c = 0; c < 4; ++c) out[i][4 * group + c] += left[i][k] * right[c];
          }
        }
      }
    }
  }

  // Writes out times factor, a factor a row.
  template <class T>
  LTX_DEVICE static void write(T* head, int64_t pitch, int first, int rows, int channel, int head_dim,
                               const float (&out)[kOwn][kChannels], const float (&factor)[kOwn]) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (first + row(i) >= rows) continue;
      T* to = head + (first + row(i)) * pitch;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int at = channel + 4 * column(c / 4) + c % 4;
        if (at < head_dim) to[at] = T(out[i][c] * factor[i]);
      }
    }
  }
};

using SimtLong = SimtTile<64, 4>;
using SimtShort = SimtTile<16, 2>;

// Calls body with a value of the type of tile that suits the lengths.
template <class Body>
void dispatch_simt(const AttentionSizes& s, Body&& body) {
  if (s.queries <= 32 && s.keys <= 32) return body(SimtShort{});
  body(SimtLong{});
}

// Which part of the result a block makes: blocks of one head's rows come one after another, for the caches.
struct SimtPlace {
  int64_t b;
  int head, first, channel;
  LTX_DEVICE SimtPlace(const AttentionSizes& s, int own_rows, int side) {
    const uint32_t tiles = (own_rows + side - 1) / side, chunks = (s.head_dim + kChunk - 1) / kChunk;
    uint32_t item = blockIdx.x;
    first = item % tiles * side;
    item /= tiles;
    channel = item % chunks * kChunk;
    item /= chunks;
    head = item % s.heads;
    b = item / s.heads;
  }
};

inline dim3 simt_grid(const AttentionSizes& s, int own_rows, int side) {
  const int64_t blocks = divide_up(own_rows, side) * divide_up(s.head_dim, kChunk) * s.heads * s.batch;
  return dim3(static_cast<uint32_t>(blocks));
}

}  // namespace ltx::cuda
