// Index maps: depth to space, transposition, column slices.
#include <algorithm>

#include "common.cuh"
#include "divisor.cuh"

namespace ltx::cuda {
namespace {

// --- depth to space

// Where the channels of one narrow position (b, f, h, w) stand in the wide array.
struct PatchMap {
  Divisor frames, height, width, channels;  // narrow: (B, frames, height, width, channels patch)
  Divisor pt, ph, pw, area, patch;          // area = ph pw, patch = pt area
  Divisor wide_frames, wide_height, wide_width, wide_channels;
  int64_t drop, repeat, positions;
  bool width_first;

  PatchMap(const Call& call, Operand narrow, Operand wide)
      : frames(narrow.dim(1)),
        height(narrow.dim(2)),
        width(narrow.dim(3)),
        pt(call.integer(0)),
        ph(call.integer(1)),
        pw(call.integer(2)),
        area(ph.value * pw.value),
        patch(pt.value * area.value),
        wide_frames(wide.dim(1)),
        wide_height(wide.dim(2)),
        wide_width(wide.dim(3)),
        wide_channels(wide.dim(4)),
        drop(call.integer(4)),
        repeat(call.integer(5)),
        positions(narrow.size() / narrow.dim(4)),
        width_first(call.integer(3) == kTimeWidthHeight) {
    channels = Divisor(narrow.dim(4) / patch.value);
  }
  // The wide element of a position's channel 0 at the patch's first place; places before `first` are dropped.
  LTX_DEVICE int64_t origin(int64_t position, int64_t& first) const {
    const int64_t row = position / width, frame = row / height, f = frame % frames * pt.value - drop;
    first = f < 0 ? -f * area.value : 0;
    const int64_t line = (frame / frames * wide_frames.value + f) * wide_height.value + row % height * ph.value;
    return (line * wide_width.value + position % width * pw.value) * wide_channels.value;
  }
  // From there to place p of the patch.
  LTX_HD int64_t offset(int64_t p) const {
    const int64_t i = p % area, h = width_first ? i % ph : i / pw, w = width_first ? i / ph : i % pw;
    return ((p / area * wide_height.value + h) * wide_width.value + w) * wide_channels.value;
  }
};

template <int kPatch>
struct Offsets {
  int64_t of[kPatch];
  explicit Offsets(const PatchMap& map) {
    for (int p = 0; p < kPatch; ++p) of[p] = map.offset(p);
  }
};

// A thread has kVector channels of a position, all their patch: kPatch vectors of the narrow array, which it transposes
// in registers, and one vector at each of kPatch places of the wide one.
template <class T, int kPatch>
__global__ void __launch_bounds__(kThreads)
    spread_vectors(PatchMap map, Divisor groups, Offsets<kPatch> offsets, const T* narrow, T* wide) {
  constexpr int N = kVector<T>;
  for (int64_t i = strided_begin(); i < map.positions * groups.value; i += strided_step()) {
    const int64_t position = i / groups, channel = i % groups * N;
    int64_t first;
    const int64_t origin = map.origin(position, first) + channel;
    Pack<T, N> in[kPatch];
    const auto* from = reinterpret_cast<const Pack<T, N>*>(narrow + (position * map.channels.value + channel) * kPatch);
#pragma unroll
    for (int k = 0; k < kPatch; ++k) in[k] = from[k];
#pragma unroll
    for (int p = 0; p < kPatch; ++p) {
      Pack<T, N> out;
#pragma unroll
      for (int c = 0; c < N; ++c) out.v[c] = in[(c * kPatch + p) / N].v[(c * kPatch + p) % N];
      T* to = wide + origin + offsets.of[p];
      for (int64_t r = 0; r < map.repeat && p >= first; ++r, to += map.channels.value) {
        *reinterpret_cast<Pack<T, N>*>(to) = out;
      }
    }
  }
}

template <class T, int kPatch>
__global__ void __launch_bounds__(kThreads)
    collect_vectors(PatchMap map, Divisor groups, Offsets<kPatch> offsets, const T* wide, T* narrow) {
  constexpr int N = kVector<T>;
  for (int64_t i = strided_begin(); i < map.positions * groups.value; i += strided_step()) {
    const int64_t position = i / groups, channel = i % groups * N;
    int64_t first;
    const int64_t origin = map.origin(position, first) + channel;
    Pack<T, N> out[kPatch];
#pragma unroll
    for (int p = 0; p < kPatch; ++p) {
      Pack<T, N> in = {};
      if (p >= first) {
        const T* from = wide + origin + offsets.of[p];
        in = *reinterpret_cast<const Pack<T, N>*>(from);
        if (map.repeat > 1) {
          Floats<N> sum = load<N>(from);
#pragma unroll 1  // or its registers crowd out the pieces
          for (int64_t r = 1; r < map.repeat; ++r) {
            const Floats<N> more = load<N>(from + r * map.channels.value);
#pragma unroll
            for (int c = 0; c < N; ++c) sum[c] += more[c];
          }
#pragma unroll
          for (int c = 0; c < N; ++c) in.v[c] = T(sum[c]);
        }
      }
#pragma unroll
      for (int c = 0; c < N; ++c) out[(c * kPatch + p) / N].v[(c * kPatch + p) % N] = in.v[c];
    }
    auto* to = reinterpret_cast<Pack<T, N>*>(narrow + (position * map.channels.value + channel) * kPatch);
#pragma unroll
    for (int k = 0; k < kPatch; ++k) to[k] = out[k];
  }
}

// Any patch and any channels: a thread has an element of what is written.
template <class T>
__global__ void __launch_bounds__(kThreads) spread_elements(PatchMap map, const T* narrow, T* wide, int64_t count) {
  for (int64_t i = strided_begin(); i < count; i += strided_step()) {
    const int64_t pixel = i / map.wide_channels, channel = i % map.wide_channels % map.channels;
    const int64_t row = pixel / map.wide_width, frame = row / map.wide_height;
    const int64_t w = pixel % map.wide_width, h = row % map.wide_height, f = frame % map.wide_frames + map.drop;
    const int64_t line = (frame / map.wide_frames * map.frames.value + f / map.pt) * map.height.value + h / map.ph;
    const int64_t position = line * map.width.value + w / map.pw, y = h % map.ph, x = w % map.pw;
    const int64_t p = f % map.pt * map.area.value + (map.width_first ? x * map.ph.value + y : y * map.pw.value + x);
    wide[i] = narrow[(position * map.channels.value + channel) * map.patch.value + p];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) collect_elements(PatchMap map, const T* wide, T* narrow, int64_t count) {
  for (int64_t i = strided_begin(); i < count; i += strided_step()) {
    const int64_t piece = i / map.patch, p = i % map.patch;
    int64_t first;
    const T* from = wide + map.origin(piece / map.channels, first) + map.offset(p) + piece % map.channels;
    if (p < first) {
      narrow[i] = T(0.0f);
      continue;
    }
    float sum = from[0];
    for (int64_t r = 1; r < map.repeat; ++r) sum += static_cast<float>(from[r * map.channels.value]);
    narrow[i] = T(sum);
  }
}

// Calls body(T, patch) with the patch as a constant where the vector kernels are made for it, else 0.
template <class Body>
void with_patch(const PatchMap& map, Operand narrow, Operand wide, Body&& body) {
  dispatch(narrow, [&](auto tag) {
    const bool vectors = map.channels.value % kVector<decltype(tag)> == 0 && aligned16(narrow.tensor->data) &&
                         aligned16(wide.tensor->data);
    switch (vectors ? map.patch.value : 0) {
      case 1:
        return body(tag, std::integral_constant<int, 1>{});
      case 2:
        return body(tag, std::integral_constant<int, 2>{});
      case 4:
        return body(tag, std::integral_constant<int, 4>{});
      case 8:
        return body(tag, std::integral_constant<int, 8>{});
      default:
        return body(tag, std::integral_constant<int, 0>{});
    }
  });
}

// --- transposition

constexpr int kTile = 32;

// A tile of rows x columns elements, at most kTile * kTile, passes through shared memory: it is as long as the matrix
// is narrow, so that both sides are read and written in runs.
template <class T>
__global__ void __launch_bounds__(kThreads)
    transpose_tiles(const T* x, T* y, int64_t m, int64_t n, int rows, int columns) {
  LTX_SHARED(T, tile, [2 * kTile * kTile]);
  const int64_t tiles_n = (n + columns - 1) / columns, tiles = (m + rows - 1) / rows * tiles_n;
  const int64_t t = blockIdx.x % tiles, i0 = t / tiles_n * rows, j0 = t % tiles_n * columns;
  const int64_t offset = blockIdx.x / tiles * m * n;
  const int pitch = columns | 1;  // odd, so that a column of the tile is spread over the banks
  for (int k = threadIdx.x; k < rows * columns; k += kThreads) {
    const int r = k / columns, c = k % columns;
    if (i0 + r < m && j0 + c < n) tile[r * pitch + c] = x[offset + (i0 + r) * n + j0 + c];
  }
  __syncthreads();
  for (int k = threadIdx.x; k < rows * columns; k += kThreads) {
    const int c = k / rows, r = k % rows;
    if (i0 + r < m && j0 + c < n) y[offset + (j0 + c) * m + i0 + r] = tile[r * pitch + c];
  }
}

// --- columns

// Columns begin .. end of each row of the result are those of an array with `stride` columns, from its first on.
template <class Word>
struct Columns {
  const Word* data;
  int64_t stride, begin, end;
};

// y (rows, columns): the columns of a, those of b, zeros elsewhere.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    gather_columns(Word* y, int64_t rows, Divisor columns, Columns<Word> a, Columns<Word> b) {
  for (int64_t i = strided_begin(); i < rows * columns.value; i += strided_step()) {
    const int64_t r = i / columns, c = i % columns;
    if (c >= a.begin && c < a.end) {
      y[i] = a.data[r * a.stride + c - a.begin];
    } else if (c >= b.begin && c < b.end) {
      y[i] = b.data[r * b.stride + c - b.begin];
    } else {
      y[i] = Word{};
    }
  }
}

// The same for elements of any dtype, moved in words as large as all sizes and addresses allow.
struct Piece {
  const void* data;
  int64_t stride, begin, end;
};
void gather_columns(const Call& call, Operand y, Piece a, Piece b) {
  const int64_t size = y.dtype() == LTX_BF16 ? 2 : 4, columns = y.columns(), rows = y.rows();
  if (!y.size()) return;
  const auto run = [&](auto word) {
    using Word = decltype(word);
    const int64_t per_word = static_cast<int64_t>(sizeof(Word)) / size;
    const auto in_words = [&](const Piece& p) {
      return Columns<Word>{static_cast<const Word*>(p.data), p.stride / per_word, p.begin / per_word, p.end / per_word};
    };
    LTX_LAUNCH(call, gather_columns<Word>, grid_for(y.size() / per_word), kThreads, 0, y.data<Word>(), rows,
               Divisor(columns / per_word), in_words(a), in_words(b));
  };
  int64_t bits = columns * size | static_cast<int64_t>(reinterpret_cast<uintptr_t>(y.tensor->data));
  for (const Piece& p : {a, b}) {
    bits |= (p.stride | p.begin | p.end) * size | static_cast<int64_t>(reinterpret_cast<uintptr_t>(p.data));
  }
  if (bits % 16 == 0) return run(uint4{});
  if (bits % 8 == 0) return run(uint2{});
  if (bits % 4 == 0) return run(uint32_t{});
  run(uint16_t{});
}

}  // namespace

void depth_to_space(const Call& call) {
  const Operand x = call[0], y = call[1];
  if (!x.size() || !y.size()) return;
  const PatchMap map(call, x, y);
  with_patch(map, x, y, [&](auto tag, auto patch) {
    using T = decltype(tag);
    constexpr int kPatch = decltype(patch)::value;
    if constexpr (kPatch > 0) {
      const Divisor groups(map.channels.value / kVector<T>);
      LTX_LAUNCH(call, (spread_vectors<T, kPatch>), grid_for(map.positions * groups.value), kThreads, 0, map, groups,
                 Offsets<kPatch>(map), x.data<const T>(), y.data<T>());
    } else {
      LTX_LAUNCH(call, (spread_elements<T>), grid_for(y.size()), kThreads, 0, map, x.data<const T>(), y.data<T>(),
                 y.size());
    }
  });
}

void space_to_depth(const Call& call) {
  const Operand y = call[0], x = call[1];
  if (!x.size()) return;
  const PatchMap map(call, x, y);
  with_patch(map, x, y, [&](auto tag, auto patch) {
    using T = decltype(tag);
    constexpr int kPatch = decltype(patch)::value;
    if constexpr (kPatch > 0) {
      const Divisor groups(map.channels.value / kVector<T>);
      LTX_LAUNCH(call, (collect_vectors<T, kPatch>), grid_for(map.positions * groups.value), kThreads, 0, map, groups,
                 Offsets<kPatch>(map), y.data<const T>(), x.data<T>());
    } else {
      LTX_LAUNCH(call, (collect_elements<T>), grid_for(x.size()), kThreads, 0, map, y.data<const T>(), x.data<T>(),
                 x.size());
    }
  });
}

void transpose(const Call& call) {
  const Operand x = call[0], y = call[1];
  if (!x.size()) return;
  const int64_t m = x.dim(-2), n = x.dim(-1), batch = x.size() / (m * n);
  int64_t rows = std::min<int64_t>(m, kTile), columns = std::min<int64_t>(n, kTile);
  rows = std::min(m, kTile * kTile / columns);
  columns = std::min(n, kTile * kTile / rows);
  const int64_t blocks = batch * divide_up(m, rows) * divide_up(n, columns);
  const auto run = [&](auto word) {
    using Word = decltype(word);
    LTX_LAUNCH(call, transpose_tiles<Word>, dim3(static_cast<uint32_t>(blocks)), kThreads, 0, x.data<const Word>(),
               y.data<Word>(), m, n, static_cast<int>(rows), static_cast<int>(columns));
  };
  x.dtype() == LTX_BF16 ? run(uint16_t{}) : run(uint32_t{});
}

void slice_last(const Call& call) {
  const Operand x = call[0], y = call[1];
  const int64_t from = x.columns(), to = y.columns(), start = call.integer(0), size = y.dtype() == LTX_BF16 ? 2 : 4;
  gather_columns(call, y, {x.data<const char>() + start * size, from, 0, to}, {nullptr, 0, 0, 0});
}

void slice_last_backward(const Call& call) {
  const Operand dy = call[0], dx = call[1];
  const int64_t from = dy.columns(), start = call.integer(0);
  gather_columns(call, dx, {dy.tensor->data, from, start, start + from}, {nullptr, 0, 0, 0});
}

void concat_last(const Call& call) {
  const Operand a = call[0], b = call[1], y = call[2];
  const int64_t left = a.columns(), right = b.columns();
  gather_columns(call, y, {a.tensor->data, left, 0, left}, {b.tensor->data, right, left, left + right});
}

}  // namespace ltx::cuda
