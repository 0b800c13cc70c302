// Attention forward, without ever storing the scores: flash attention. Blocks walk over the keys with a running maximum
// and sum a query; exponentials are powers of two, with log2(e) in the scale.
#include <algorithm>

#include "attention.cuh"
#include "attention_simt.cuh"
#include "attention_tiles.cuh"

namespace ltx::cuda {
namespace {

// Tensors of the softmax: q and k as they come from `prepare`.
template <class T>
struct Forward {
  AttentionSizes sizes;
  const T *q, *k, *v;
  const float *mask, *bias;  // (B, Lk), (heads, Lq, Lk) or null
  T* y;
  float* lse;
  // The log-sum-exp of a query from its maximum and sum in base 2; -infinity when every key is left out.
  LTX_DEVICE void write_lse(int64_t b, int head, int row, float maximum, float sum) const {
    lse[(b * sizes.heads + head) * sizes.queries + row] = sum == 0.0f ? -INFINITY : fmaf(maximum, kLn2, logf(sum));
  }
};

// How bf16 heads are cut.
//
// Long: a block has up to 128 queries of one head, 16 a warp, and tiles of 64 keys in two stages that all warps share.
// A tile that is read from L2 once for 128 queries makes 128 flops a byte: 0.6 TB/s feed 80 TFLOP/s. Scores are made 32
// keys at a time. Head width 64 then fits 128 registers (result 32, q 16, scores 16), so that two blocks, 16 warps,
// share an SM of sm_86 and hide each other's softmax behind mma; 32.5 KB of shared memory each. Width 128 needs about
// 200 registers (result 64, q 32): one block of 8 warps and 64.5 KB an SM rather than spills.
//
// Short, at most 32 queries and 64 keys: a warp has 16 queries to itself and its tiles of 16 keys too, so no warp waits
// for another and a tile is no fuller than the sequence; 4 warps a block, 4 KB each at head width 64.
template <int kHeadWidth, bool kWarpAlone>
struct ForwardTiling {
  static constexpr bool kAlone = kWarpAlone;
  static constexpr int kHead = kHeadWidth, kKeys = kAlone ? 16 : 64, kStep = kAlone ? 16 : 32, kStages = kAlone ? 1 : 2;
  static constexpr int kMostWarps = kAlone ? 4 : 8, kBlocksOfSm = kAlone ? 3 : kHead > 64 ? 1 : 2;
  static constexpr int kTile = kKeys * kHead;  // elements
  static constexpr int kStageBytes = 2 * kTile * 2 + kKeys * 4, kTeamBytes = kStages * kStageBytes;
};

template <class Tiling>
__global__ void __launch_bounds__(Tiling::kMostWarps* kWarp, Tiling::kBlocksOfSm) attend(Forward<bf16> f) {
  constexpr int kHead = Tiling::kHead, kKeys = Tiling::kKeys, kStep = Tiling::kStep;
  LTX_DYNAMIC_SHARED(unsigned char, shared);
  const AttentionSizes& s = f.sizes;
  const Team<Tiling::kAlone> team;
  const WarpPlace at(s, s.queries, team);
  if (at.b >= s.batch) return;  // a warp that is alone
  unsigned char* memory = shared + (Tiling::kAlone ? threadIdx.x / kWarp * Tiling::kTeamBytes : 0);
  const auto k_tile = [&](int stage) { return reinterpret_cast<bf16*>(memory + stage * Tiling::kStageBytes); };
  const auto v_tile = [&](int stage) { return k_tile(stage) + Tiling::kTile; };
  const auto mask_tile = [&](int stage) { return reinterpret_cast<float*>(v_tile(stage) + Tiling::kTile); };

  const HeadRows queries = head_rows(f.q, s, at, s.queries);
  const HeadRows keys = head_rows(f.k, s, at, s.keys), values = head_rows(f.v, s, at, s.keys);
  const Fragments<kHead> q(queries, at.first);
  const float scale = s.scale * kLog2e;
  float out[kHead / 8][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};

  const auto fetch = [&](int tile, int stage) {
    copy_tile<kHead, kKeys>(k_tile(stage), keys, tile * kKeys, team);
    copy_tile<kHead, kKeys>(v_tile(stage), values, tile * kKeys, team);
    if (!f.mask) return;
    for (int i = team.thread; i < kKeys; i += team.threads) {
      const int key = tile * kKeys + i;
      cp_async<4>(mask_tile(stage) + i, key < s.keys ? f.mask + static_cast<int64_t>(at.b) * s.keys + key : f.mask,
                  key < s.keys);
    }
  };
  // Of kStep keys: scores, softmax, share of the result.
  const auto use_step = [&](int first_key, const bf16* k_rows, const bf16* v_rows, const float* mask) {
    float p[kStep / 8][4];
    score<kHead, kStep>(p, q, k_rows);
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[j][i] *= scale;
    }
    if (f.mask) {
#pragma unroll
      for (int j = 0; j < kStep / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[j][i] = fmaf(mask[8 * j + i % 2], kLog2e, p[j][i]);
      }
    }
    if (f.bias) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = min(at.first + lane_row() + i / 2 * 8, s.queries - 1),
                  column = first_key + lane_column() + i % 2;
        const float* bias = f.bias + (static_cast<int64_t>(at.head) * s.queries + row) * s.keys + column;
#pragma unroll
        for (int j = 0; j < kStep / 8; ++j) {
          if (column + 8 * j < s.keys) p[j][i] = fmaf(bias[8 * j], kLog2e, p[j][i]);
        }
      }
    }
    if (first_key + kStep > s.keys) {
#pragma unroll
      for (int j = 0; j < kStep / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (first_key + 8 * j + lane_column() + i % 2 >= s.keys) p[j][i] = -INFINITY;
        }
      }
    }

    float shrink[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = maximum[i];
#pragma unroll
      for (int j = 0; j < kStep / 8; ++j) most = fmaxf(most, fmaxf(p[j][2 * i], p[j][2 * i + 1]));
      most = warp_reduce<Max, 4>(most);
      // Until a key comes that is not left out, the maximum is -infinity and the sum zero.
      const float base = most == -INFINITY ? 0.0f : most;
      shrink[i] = exp2_approx(maximum[i] - base);
      maximum[i] = most;
      float more = 0.0f;
#pragma unroll
      for (int j = 0; j < kStep / 8; ++j) {
        p[j][2 * i] = exp2_approx(p[j][2 * i] - base);
        p[j][2 * i + 1] = exp2_approx(p[j][2 * i + 1] - base);
        more += p[j][2 * i] + p[j][2 * i + 1];
      }
      sum[i] = fmaf(sum[i], shrink[i], more);  // of this lane's columns
    }
    // Maxima soon stop growing: then the result's many registers are left alone.
    if (__ballot_sync(0xFFFFFFFFu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
      for (int j = 0; j < kHead / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[j][i] *= shrink[i / 2];
      }
    }
    accumulate<kHead, kStep>(out, p, v_rows);
  };
  const auto use = [&](int tile, int stage) {
    if (at.first >= s.queries) return;
#pragma unroll 1
    for (int step = 0; step < kKeys && tile * kKeys + step < s.keys; step += kStep) {
      use_step(tile * kKeys + step, k_tile(stage) + step * kHead, v_tile(stage) + step * kHead,
               mask_tile(stage) + step + lane_column());
    }
  };
  stream_tiles<Tiling::kStages>(team, (s.keys + kKeys - 1) / kKeys, fetch, use);

  float inverse[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] = warp_reduce<Add, 4>(sum[i]);
    inverse[i] = sum[i] == 0.0f ? 0.0f : 1.0f / sum[i];
    const int row = at.first + lane_row() + 8 * i;
    if (lane_column() == 0 && row < s.queries) f.write_lse(at.b, at.head, row, maximum[i], sum[i]);
  }
  write_rows<kHead>(f.y, s, at, s.queries, out, inverse);
}

template <class Tiling>
void attend_on_tensor_cores(const Call& call, const Forward<bf16>& f) {
  const AttentionSizes& s = f.sizes;
  const int64_t rows = divide_up(s.queries, 16);
  const int warps =
      Tiling::kAlone ? Tiling::kMostWarps : static_cast<int>(std::clamp<int64_t>(rows, 1, Tiling::kMostWarps));
  const int64_t tiles =
      Tiling::kAlone ? divide_up(rows * s.heads * s.batch, warps) : divide_up(rows, warps) * s.heads * s.batch;
  const size_t shared = size_t{Tiling::kTeamBytes} * (Tiling::kAlone ? warps : 1);
  LTX_LAUNCH(call, attend<Tiling>, dim3(static_cast<uint32_t>(tiles)), warps * kWarp, shared, f);
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kTileThreads, Tile::kBlocksOfSm) attend_simt(Forward<T> f) {
  constexpr int kSide = Tile::kSide, kOwn = Tile::kOwn;
  LTX_SHARED(float, a, [Tile::kFloats]);
  LTX_SHARED(float, tile_b, [Tile::kFloats]);
  const AttentionSizes& s = f.sizes;
  const SimtPlace at(s, s.queries, kSide);
  const int64_t width = s.width(), channels = at.head * s.head_dim;
  const int64_t q_offset = at.b * s.queries * width + channels, k_offset = at.b * s.keys * width + channels;
  const T *q = f.q + q_offset, *k = f.k + k_offset, *v = f.v + k_offset;
  const float scale = s.scale * kLog2e;
  float out[kOwn][Tile::kChannels] = {}, maximum[kOwn], sum[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    maximum[i] = -INFINITY;
    sum[i] = 0.0f;
  }
  for (int key = 0; key < s.keys; key += kSide) {
    float p[kOwn][kOwn];
    Tile::score(p, a, tile_b, q, at.first, s.queries, k, key, s.keys, width, s.head_dim);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int64_t row = min(at.first + Tile::row(i), s.queries - 1);
      float most = maximum[i];
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const int column = key + Tile::column(j);
        p[i][j] *= scale;
        if (column < s.keys) {
          if (f.mask) p[i][j] = fmaf(f.mask[at.b * s.keys + column], kLog2e, p[i][j]);
          if (f.bias) p[i][j] = fmaf(f.bias[(at.head * s.queries + row) * s.keys + column], kLog2e, p[i][j]);
        } else {
          p[i][j] = -INFINITY;
        }
        most = fmaxf(most, p[i][j]);
      }
      most = warp_reduce<Max, Tile::kAcross>(most);
      const float base = most == -INFINITY ? 0.0f : most, shrink = exp2_approx(maximum[i] - base);
      maximum[i] = most;
      sum[i] *= shrink;
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        p[i][j] = exp2_approx(p[i][j] - base);
        sum[i] += p[i][j];
      }
#pragma unroll
      for (int c = 0; c < Tile::kChannels; ++c) out[i][c] *= shrink;
    }
    Tile::accumulate(out, p, a, tile_b, v, key, s.keys, width, at.channel, s.head_dim);
  }
  float inverse[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    sum[i] = warp_reduce<Add, Tile::kAcross>(sum[i]);
    inverse[i] = sum[i] == 0.0f ? 0.0f : 1.0f / sum[i];
    const int row = at.first + Tile::row(i);
    if (Tile::x() == 0 && at.channel == 0 && row < s.queries) f.write_lse(at.b, at.head, row, maximum[i], sum[i]);
  }
  Tile::write(f.y + q_offset, width, at.first, s.queries, at.channel, s.head_dim, out, inverse);
}

template <class T>
void attend_anywhere(const Call& call, const Forward<T>& f) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (fits_tensor_cores(f.sizes, f.q, f.k, f.v, static_cast<const bf16*>(f.y))) {
      return dispatch_head(f.sizes.head_dim, [&](auto head) {
        dispatch(f.sizes.queries <= 32 && f.sizes.keys <= 64,
                 [&](auto alone) { attend_on_tensor_cores<ForwardTiling<head, alone>>(call, f); });
      });
    }
  }
  dispatch_simt(f.sizes, [&](auto tile) {
    using Tile = decltype(tile);
    LTX_LAUNCH(call, (attend_simt<T, Tile>), simt_grid(f.sizes, f.sizes.queries, Tile::kSide), Tile::kTileThreads, 0,
               f);
  });
}

}  // namespace

void attention(const Call& call) {
  const AttentionSizes sizes = attention_sizes(call);
  dispatch(call[0], [&](auto tag) {
    using T = decltype(tag);
    const Prepared<T> rows =
        prepare(call, projection<T>(call, 0, 3, 11), projection<T>(call, 1, 4, 12), sizes.width(), false);
    attend_anywhere<T>(call, {sizes, rows.q, rows.k, call[2].data<T>(), data<float>(call[7]), data<float>(call[8]),
                              call[9].data<T>(), call[10].data<float>()});
  });
}

}  // namespace ltx::cuda
