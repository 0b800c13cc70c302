// Index maps: depth to space, transposition, column slices.
#include <algorithm>

#include "common.cuh"

namespace ltx::cuda {
namespace {

// --- depth to space

// Where the channels of one narrow position (b, f, h, w) stand in the wide array.
struct PatchMap {
  int64_t frames, height, width, channels;  // narrow: (B, frames, height, width, channels patch)
  int64_t pt, ph, pw, drop, repeat, positions;
  int64_t wide_frames, wide_row, wide_frame;  // strides of the wide array in elements
  bool width_first;

  PatchMap(const Call& call, Operand narrow, Operand wide)
      : frames(narrow.dim(1)),
        height(narrow.dim(2)),
        width(narrow.dim(3)),
        pt(call.integer(0)),
        ph(call.integer(1)),
        pw(call.integer(2)),
        drop(call.integer(4)),
        repeat(call.integer(5)),
        positions(narrow.dim(0) * frames * height * width),
        width_first(call.integer(3) == kTimeWidthHeight) {
    channels = narrow.dim(4) / patch();
    wide_frames = frames * pt - drop;
    wide_row = width * pw * channels * repeat;
    wide_frame = height * ph * wide_row;
  }
  LTX_HD int64_t patch() const { return pt * ph * pw; }
  // The wide element of channel 0 at offset p of the patch; negative in a frame that is dropped.
  LTX_DEVICE int64_t wide(int64_t position, int p) const {
    const int area = static_cast<int>(ph * pw), t = p / area, i = p % area;
    const int h = static_cast<int>(width_first ? i % ph : i / pw), w = static_cast<int>(width_first ? i / ph : i % pw);
    const int64_t row = position / width, frame = row / height, f = frame % frames * pt + t - drop;
    if (f < 0) return -1;
    return (frame / frames * wide_frames + f) * wide_frame + (row % height * ph + h) * wide_row +
           (position % width * pw + w) * channels * repeat;
  }
};

// A thread has kVector channels of a position, all their patch: kPatch vectors of the narrow array, which it transposes
// in registers, and one vector at each of kPatch places of the wide one.
template <class T, int kPatch>
__global__ void __launch_bounds__(kThreads) spread_vectors(PatchMap map, const T* narrow, T* wide) {
  constexpr int N = kVector<T>;
  const int64_t groups = map.channels / N;
  for (int64_t i = strided_begin(); i < map.positions * groups; i += strided_step()) {
    const int64_t position = i / groups, channel = i % groups * N;
    Pack<T, N> in[kPatch];
    const auto* from = reinterpret_cast<const Pack<T, N>*>(narrow + (position * map.channels + channel) * kPatch);
#pragma unroll
    for (int k = 0; k < kPatch; ++k) in[k] = from[k];
#pragma unroll
    for (int p = 0; p < kPatch; ++p) {
      Pack<T, N> out;
#pragma unroll
      for (int c = 0; c < N; ++c) out.v[c] = in[(c * kPatch + p) / N].v[(c * kPatch + p) % N];
      const int64_t to = map.wide(position, p);
      if (to < 0) continue;
      for (int64_t r = 0; r < map.repeat; ++r) {
        *reinterpret_cast<Pack<T, N>*>(wide + to + r * map.channels + channel) = out;
      }
    }
  }
}

template <class T, int kPatch>
__global__ void __launch_bounds__(kThreads) collect_vectors(PatchMap map, const T* wide, T* narrow) {
  constexpr int N = kVector<T>;
  const int64_t groups = map.channels / N;
  for (int64_t i = strided_begin(); i < map.positions * groups; i += strided_step()) {
    const int64_t position = i / groups, channel = i % groups * N;
    Pack<T, N> out[kPatch];
#pragma unroll
    for (int p = 0; p < kPatch; ++p) {
      const int64_t place = map.wide(position, p);
      Pack<T, N> in = {};
      if (place >= 0) {
        const T* from = wide + place + channel;
        in = *reinterpret_cast<const Pack<T, N>*>(from);
        if (map.repeat > 1) {
          Floats<N> sum = load<N>(from);
          for (int64_t r = 1; r < map.repeat; ++r) {
            const Floats<N> more = load<N>(from + r * map.channels);
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
    auto* to = reinterpret_cast<Pack<T, N>*>(narrow + (position * map.channels + channel) * kPatch);
#pragma unroll
    for (int k = 0; k < kPatch; ++k) to[k] = out[k];
  }
}

// Any patch and any channels: a thread has an element of what is written.
template <class T>
__global__ void __launch_bounds__(kThreads) spread_elements(PatchMap map, const T* narrow, T* wide, int64_t count) {
  const int64_t wide_width = map.width * map.pw, wide_height = map.height * map.ph;
  for (int64_t i = strided_begin(); i < count; i += strided_step()) {
    const int64_t pixel = i / (map.channels * map.repeat), channel = i % map.channels;
    const int64_t row = pixel / wide_width, frame = row / wide_height;
    const int64_t w = pixel % wide_width, h = row % wide_height, f = frame % map.wide_frames + map.drop;
    const int64_t position =
        ((frame / map.wide_frames * map.frames + f / map.pt) * map.height + h / map.ph) * map.width + w / map.pw;
    const int64_t inner = map.width_first ? w % map.pw * map.ph + h % map.ph : h % map.ph * map.pw + w % map.pw;
    wide[i] = narrow[(position * map.channels + channel) * map.patch() + f % map.pt * map.ph * map.pw + inner];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) collect_elements(PatchMap map, const T* wide, T* narrow, int64_t count) {
  const int64_t patch = map.patch();
  for (int64_t i = strided_begin(); i < count; i += strided_step()) {
    const int64_t piece = i / patch, place = map.wide(piece / map.channels, static_cast<int>(i % patch));
    if (place < 0) {
      narrow[i] = T(0.0f);
      continue;
    }
    const T* from = wide + place + piece % map.channels;
    float sum = from[0];
    for (int64_t r = 1; r < map.repeat; ++r) sum += static_cast<float>(from[r * map.channels]);
    narrow[i] = T(sum);
  }
}

// Calls body(T, patch) with the patch as a constant where the vector kernels are made for it, else 0.
template <class Body>
void with_patch(const PatchMap& map, Operand narrow, Operand wide, Body&& body) {
  dispatch(narrow, [&](auto tag) {
    const bool vectors =
        map.channels % kVector<decltype(tag)> == 0 && aligned16(narrow.tensor->data) && aligned16(wide.tensor->data);
    switch (vectors ? map.patch() : 0) {
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
    gather_columns(Word* y, int64_t rows, int64_t columns, Columns<Word> a, Columns<Word> b) {
  for (int64_t i = strided_begin(); i < rows * columns; i += strided_step()) {
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
               columns / per_word, in_words(a), in_words(b));
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
      LTX_LAUNCH(call, (spread_vectors<T, kPatch>), grid_for(map.positions * map.channels / kVector<T>), kThreads, 0,
                 map, x.data<const T>(), y.data<T>());
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
      LTX_LAUNCH(call, (collect_vectors<T, kPatch>), grid_for(map.positions * map.channels / kVector<T>), kThreads, 0,
                 map, y.data<const T>(), x.data<T>());
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
