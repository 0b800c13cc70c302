// Attention backward: the probabilities are computed again from the stored log-sum-exp. dk and dv come from one walk
// over the queries, dq from another over the keys, so that every sum is one thread's own and no two blocks add to the
// same place. Both are the same walk with the sides changed, where p = softmax, dp = dy v^T, ds = p (dp - delta):
//   own rows   other rows   result, times the scale but for dv
//   k, v       q, dy        dk = ds^T q, dv = p^T dy
//   q, dy      k, v         dq = ds k
#include <algorithm>

#include "attention.cuh"
#include "attention_simt.cuh"
#include "attention_tiles.cuh"

namespace ltx::cuda {
namespace {

template <class T>
struct Backward {
  AttentionSizes sizes;
  const T *q, *k, *v, *dy;   // q and k as they come from `prepare`
  const float* mask;         // (B, Lk) or null
  const float2* statistics;  // (B, heads, Lq): log-sum-exp in base 2, delta = sum over channels of y dy
  T *dq, *dk, *dv;
};

constexpr int kStatisticThreads = 128;

// One block a query, 8 lanes a head.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kStatisticThreads)
    row_statistics(AttentionSizes s, const T* y, const T* dy, const float* lse, float2* statistics) {
  constexpr int N = kWhole ? kVector<T> : 1, kLanes = 8;
  const int lane = threadIdx.x % kLanes;
  const uint32_t b = blockIdx.x / s.queries, query = blockIdx.x % s.queries;
  for (int first = 0; first < s.heads; first += kStatisticThreads / kLanes) {
    const int head = first + threadIdx.x / kLanes;
    const int64_t offset = blockIdx.x * s.width() + static_cast<int64_t>(head) * s.head_dim;
    float sum = 0.0f;
    if (head < s.heads) {
      for (int c = lane * N; c < s.head_dim; c += kLanes * N) {
        const Floats<N> left = load<N>(y + offset + c), right = load<N>(dy + offset + c);
#pragma unroll
        for (int i = 0; i < N; ++i) sum += left[i] * right[i];
      }
    }
    sum = warp_reduce<Add, kLanes>(sum);
    if (lane || head >= s.heads) continue;
    const int64_t at = (static_cast<int64_t>(b) * s.heads + head) * s.queries + query;
    // A query without a key has the log-sum-exp -infinity; +infinity makes its probabilities zero.
    statistics[at] = make_float2(lse[at] == -INFINITY ? INFINITY : lse[at] * kLog2e, sum);
  }
}

// How bf16 heads are cut, 16 own rows a warp.
//
// Long: blocks of 4 warps, 64 own rows, and tiles of 32 other rows in two stages, 16 at a time through the registers.
// For dk and dv at head width 64 a thread holds two own fragments and two results, 96 registers, and two pieces of
// scores: 168 registers in all let three blocks share an SM of sm_86, for dq 128 let four. For dk and dv at width 128
// the results alone are 128 registers, so the own rows stay in shared memory and tiles have 16 rows: 48 KB, two blocks.
//
// Short: a warp has its own tiles of 16 rows and makes dk and dv, then dq; the second walk reads what the first has
// brought into L2.
template <int kHeadWidth, bool kWarpAlone, bool kOwnKeys>
struct BackwardTiling {
  static constexpr bool kAlone = kWarpAlone, kOfKeys = kOwnKeys, kResident = kHeadWidth <= 64 || !kOwnKeys;
  static constexpr int kHead = kHeadWidth, kRows = kAlone || !kResident ? 16 : 32, kStages = kAlone ? 1 : 2;
  static constexpr int kWarps = kAlone && kHead > 64 ? 2 : 4;
  static constexpr int kBlocksOfSm = kAlone ? 3 : kHead > 64 ? 2 : kOfKeys ? 3 : 4;
  static constexpr int kTile = kRows * kHead, kOwnTile = 16 * kHead;  // elements
  static constexpr int kStageBytes = 2 * kTile * 2 + kRows * 8;
  static constexpr int kOwnBytes = kResident ? 0 : 2 * kOwnTile * 2;  // of a warp
  static constexpr int kTeamBytes = kStages * kStageBytes + (kAlone ? 1 : kWarps) * kOwnBytes;
  static constexpr int kSharedBytes = (kAlone ? kWarps : 1) * kTeamBytes;
};

// memory: the team's kTeamBytes.
template <class Tiling>
LTX_DEVICE void walk(const Backward<bf16>& f, unsigned char* memory) {
  constexpr int kHead = Tiling::kHead, kRows = Tiling::kRows, kStep = 16;
  constexpr bool kOfKeys = Tiling::kOfKeys;
  const AttentionSizes& s = f.sizes;
  const Team<Tiling::kAlone> team;
  const int own_rows = kOfKeys ? s.keys : s.queries, other_rows = kOfKeys ? s.queries : s.keys;
  const WarpPlace at(s, own_rows, team);
  if (at.b >= s.batch) return;  // a warp that is alone
  const auto tile_of = [&](int stage) { return reinterpret_cast<bf16*>(memory + stage * Tiling::kStageBytes); };
  const auto second_tile_of = [&](int stage) { return tile_of(stage) + Tiling::kTile; };
  const auto columns_of = [&](int stage) { return reinterpret_cast<float*>(second_tile_of(stage) + Tiling::kTile); };
  bf16* own_tiles = tile_of(Tiling::kStages) + (Tiling::kAlone ? 0 : threadIdx.x / kWarp * 2 * Tiling::kOwnTile);

  const HeadRows q = head_rows(f.q, s, at, s.queries), dy = head_rows(f.dy, s, at, s.queries);
  const HeadRows k = head_rows(f.k, s, at, s.keys), v = head_rows(f.v, s, at, s.keys);
  const HeadRows &own = kOfKeys ? k : q, &own_second = kOfKeys ? v : dy;
  const HeadRows &other = kOfKeys ? q : k, &other_second = kOfKeys ? dy : v;
  const float* mask = f.mask ? f.mask + static_cast<int64_t>(at.b) * s.keys : nullptr;
  const float2* statistics = f.statistics + (static_cast<int64_t>(at.b) * s.heads + at.head) * s.queries;
  const auto fragments = [&](const HeadRows& rows, [[maybe_unused]] int place) {
    if constexpr (Tiling::kResident) {
      return Fragments<kHead>(rows, at.first);
    } else {
      return SharedFragments<kHead>{own_tiles + place * Tiling::kOwnTile};
    }
  };
  const auto a = fragments(own, 0), a_second = fragments(own_second, 1);

  // What scores of the own rows have added to them: the mask of keys, minus the log-sum-exp of queries.
  float shift[2], delta[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = at.first + lane_row() + 8 * i;
    if constexpr (kOfKeys) {
      shift[i] = mask && row < s.keys ? mask[row] * kLog2e : 0.0f;
    } else {
      const float2 own_statistics = row < s.queries ? statistics[row] : make_float2(INFINITY, 0.0f);
      shift[i] = -own_statistics.x;
      delta[i] = own_statistics.y;
    }
  }
  const float scale = s.scale * kLog2e;
  float out[kHead / 8][4] = {}, out_second[kOfKeys ? kHead / 8 : 1][4] = {};

  const auto fetch = [&](int tile, int stage) {
    const int first = tile * kRows;
    if (!Tiling::kResident && tile == 0) {
      const Team<true> warp;
      copy_tile<kHead, 16>(own_tiles, own, at.first, warp);
      copy_tile<kHead, 16>(own_tiles + Tiling::kOwnTile, own_second, at.first, warp);
    }
    copy_tile<kHead, kRows>(tile_of(stage), other, first, team);
    copy_tile<kHead, kRows>(second_tile_of(stage), other_second, first, team);
    float* columns = columns_of(stage);
    for (int i = team.thread; i < kRows; i += team.threads) {
      const bool valid = first + i < other_rows;
      if constexpr (kOfKeys) {
        cp_async<8>(columns + 2 * i, valid ? statistics + first + i : f.statistics, valid);
      } else if (mask) {
        cp_async<4>(columns + i, valid ? mask + first + i : f.mask, valid);
      }
    }
  };
  // Of kStep other rows from `first` on. columns: what fetch has put beside them.
  const auto use_step = [&](int first, const bf16* rows, const bf16* second_rows, const float* columns) {
    float p[kStep / 8][4], ds[kStep / 8][4];
    score<kHead, kStep>(p, a, rows);
    score<kHead, kStep>(ds, a_second, second_rows);
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j) {
      const int column = 8 * j + lane_column();
      float column_shift[2] = {}, column_delta[2] = {};
      if constexpr (kOfKeys) {
        const Floats<4> both = load<4>(columns + 2 * column);
        column_shift[0] = -both[0];
        column_delta[0] = both[1];
        column_shift[1] = -both[2];
        column_delta[1] = both[3];
      } else if (mask) {
        column_shift[0] = columns[column] * kLog2e;
        column_shift[1] = columns[column + 1] * kLog2e;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Mask first: it may be so large that only the log-sum-exp brings the sum back.
        const float score = kOfKeys ? fmaf(p[j][i], scale, shift[i / 2]) + column_shift[i % 2]
                                    : fmaf(p[j][i], scale, column_shift[i % 2]) + shift[i / 2];
        p[j][i] = first + column + i % 2 < other_rows ? exp2_approx(score) : 0.0f;
        ds[j][i] = p[j][i] * (ds[j][i] - (kOfKeys ? column_delta[i % 2] : delta[i / 2]));
      }
    }
    if constexpr (kOfKeys) accumulate<kHead, kStep>(out_second, p, second_rows);
    accumulate<kHead, kStep>(out, ds, rows);
  };
  const auto use = [&](int tile, int stage) {
    if (at.first >= own_rows) return;
#pragma unroll 1
    for (int step = 0; step < kRows && tile * kRows + step < other_rows; step += kStep) {
      use_step(tile * kRows + step, tile_of(stage) + step * kHead, second_tile_of(stage) + step * kHead,
               columns_of(stage) + (kOfKeys ? 2 : 1) * step);
    }
  };
  stream_tiles<Tiling::kStages>(team, (other_rows + kRows - 1) / kRows, fetch, use);

  write_rows<kHead>(kOfKeys ? f.dk : f.dq, s, at, own_rows, out, {s.scale, s.scale});
  if constexpr (kOfKeys) write_rows<kHead>(f.dv, s, at, own_rows, out_second, {1.0f, 1.0f});
}

template <class Tiling>
__global__ void __launch_bounds__(Tiling::kWarps* kWarp, Tiling::kBlocksOfSm) attend_backward(Backward<bf16> f) {
  LTX_DYNAMIC_SHARED(unsigned char, shared);
  walk<Tiling>(f, shared);
}

template <class OfKeys, class OfQueries>
__global__ void __launch_bounds__(OfKeys::kWarps* kWarp, OfKeys::kBlocksOfSm) attend_backward_short(Backward<bf16> f) {
  LTX_DYNAMIC_SHARED(unsigned char, shared);
  unsigned char* memory = shared + threadIdx.x / kWarp * OfKeys::kTeamBytes;
  walk<OfKeys>(f, memory);
  __syncwarp();  // the tiles are written again
  walk<OfQueries>(f, memory);
}

template <int kHead>
void attend_backward_on_tensor_cores(const Call& call, const Backward<bf16>& f) {
  const AttentionSizes& s = f.sizes;
  const int64_t heads = s.heads * s.batch;
  if (short_sequences(s)) {
    using OfKeys = BackwardTiling<kHead, true, true>;
    using OfQueries = BackwardTiling<kHead, true, false>;
    static_assert(OfKeys::kWarps == OfQueries::kWarps && OfKeys::kBlocksOfSm == OfQueries::kBlocksOfSm &&
                  OfKeys::kSharedBytes >= OfQueries::kSharedBytes);
    const int64_t blocks = divide_up(divide_up(std::max(s.queries, s.keys), 16) * heads, OfKeys::kWarps);
    LTX_LAUNCH(call, (attend_backward_short<OfKeys, OfQueries>), dim3(static_cast<uint32_t>(blocks)),
               OfKeys::kWarps * kWarp, OfKeys::kSharedBytes, f);
    return;
  }
  const auto run = [&](auto tiling, int64_t own_rows) {
    using Tiling = decltype(tiling);
    const int64_t blocks = divide_up(own_rows, 16 * Tiling::kWarps) * heads;
    LTX_LAUNCH(call, attend_backward<Tiling>, dim3(static_cast<uint32_t>(blocks)), Tiling::kWarps * kWarp,
               Tiling::kSharedBytes, f);
  };
  run(BackwardTiling<kHead, false, true>{}, s.keys);
  run(BackwardTiling<kHead, false, false>{}, s.queries);
}

template <class T, class Tile, bool kOfKeys>
__global__ void __launch_bounds__(Tile::kTileThreads, Tile::kBlocksOfSm) attend_backward_simt(Backward<T> f) {
  constexpr int kSide = Tile::kSide, kOwn = Tile::kOwn;
  LTX_SHARED(float, first_tile, [Tile::kFloats]);
  LTX_SHARED(float, second_tile, [Tile::kFloats]);
  const AttentionSizes& s = f.sizes;
  const int own_rows = kOfKeys ? s.keys : s.queries, other_rows = kOfKeys ? s.queries : s.keys;
  const SimtPlace at(s, own_rows, kSide);
  const int64_t width = s.width(), channels = at.head * s.head_dim;
  const int64_t q_offset = at.b * s.queries * width + channels, k_offset = at.b * s.keys * width + channels;
  const int64_t own_offset = kOfKeys ? k_offset : q_offset, other_offset = kOfKeys ? q_offset : k_offset;
  const T *own = (kOfKeys ? f.k : f.q) + own_offset, *own_second = (kOfKeys ? f.v : f.dy) + own_offset;
  const T *other = (kOfKeys ? f.q : f.k) + other_offset, *other_second = (kOfKeys ? f.dy : f.v) + other_offset;
  const float* mask = f.mask ? f.mask + at.b * s.keys : nullptr;
  const float2* statistics = f.statistics + (at.b * s.heads + at.head) * s.queries;
  const float scale = s.scale * kLog2e;
  float out[kOwn][Tile::kChannels] = {}, out_second[kOwn][kOfKeys ? Tile::kChannels : 1] = {};
  for (int first = 0; first < other_rows; first += kSide) {
    float p[kOwn][kOwn], ds[kOwn][kOwn];
    Tile::score(p, first_tile, second_tile, own, at.first, own_rows, other, first, other_rows, width, s.head_dim);
    Tile::score(ds, first_tile, second_tile, own_second, at.first, own_rows, other_second, first, other_rows, width,
                s.head_dim);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const int row = at.first + Tile::row(i), column = first + Tile::column(j);
        const int query = kOfKeys ? column : row, key = kOfKeys ? row : column;
        const bool valid = query < s.queries && key < s.keys;
        const float2 of_query = valid ? statistics[query] : make_float2(INFINITY, 0.0f);
        const float masked = fmaf(p[i][j], scale, valid && mask ? mask[key] * kLog2e : 0.0f);
        p[i][j] = exp2_approx(masked - of_query.x);
        ds[i][j] = p[i][j] * (ds[i][j] - of_query.y);
      }
    }
    if constexpr (kOfKeys) {
      Tile::accumulate(out_second, p, first_tile, second_tile, other_second, first, other_rows, width, at.channel,
                       s.head_dim);
    }
    Tile::accumulate(out, ds, first_tile, second_tile, other, first, other_rows, width, at.channel, s.head_dim);
  }
  float factor[kOwn], one[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    factor[i] = s.scale;
    one[i] = 1.0f;
  }
  Tile::write((kOfKeys ? f.dk : f.dq) + own_offset, width, at.first, own_rows, at.channel, s.head_dim, out, factor);
  if constexpr (kOfKeys) {
    Tile::write(f.dv + own_offset, width, at.first, own_rows, at.channel, s.head_dim, out_second, one);
  }
}

template <class T>
void attend_backward_anywhere(const Call& call, const Backward<T>& f) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (fits_tensor_cores(f.sizes, f.q, f.k, f.v, f.dy, f.dq, f.dk, f.dv)) {
      return dispatch_head(f.sizes.head_dim, [&](auto head) { attend_backward_on_tensor_cores<head>(call, f); });
    }
  }
  dispatch_simt(f.sizes, [&](auto tile) {
    using Tile = decltype(tile);
    LTX_LAUNCH(call, (attend_backward_simt<T, Tile, true>), simt_grid(f.sizes, f.sizes.keys, Tile::kSide),
               Tile::kTileThreads, 0, f);
    LTX_LAUNCH(call, (attend_backward_simt<T, Tile, false>), simt_grid(f.sizes, f.sizes.queries, Tile::kSide),
               Tile::kTileThreads, 0, f);
  });
}

template <class T>
void attention_gradients(const Call& call) {
  const AttentionSizes s = attention_sizes(call);
  const Projection<T> q = projection<T>(call, 0, 3, 10), k = projection<T>(call, 1, 4, 11);
  const Prepared<T> rows = prepare(call, q, k, s.width(), true);
  const T *y = call[8].data<T>(), *dy = call[12].data<T>();
  T *dq = call[13].data<T>(), *dk = call[14].data<T>(), *dv = call[15].data<T>();

  const int64_t queries = s.batch * s.queries;
  float2* statistics = scratch<float2>(call, 2, queries * s.heads);
  dispatch(s.head_dim % kVector<T> == 0 && aligned16(y) && aligned16(dy), [&](auto whole) {
    LTX_LAUNCH(call, (row_statistics<T, whole>), dim3(static_cast<uint32_t>(queries)), kStatisticThreads, 0, s, y, dy,
               call[9].data<float>(), statistics);
  });
  attend_backward_anywhere<T>(call,
                              {s, rows.q, rows.k, call[2].data<T>(), dy, data<float>(call[7]), statistics, dq, dk, dv});
  unprepare(call, q, k, s.width(), dq, dk, data<float>(call[16]), data<float>(call[17]));
}

}  // namespace

void attention_backward(const Call& call) {
  dispatch(call[0], [&](auto tag) { attention_gradients<decltype(tag)>(call); });
}

}  // namespace ltx::cuda
