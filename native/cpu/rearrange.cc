// Index maps: depth to space, transposition, column slices, row lookups.
#include <vector>

#include "blocks.h"

namespace ltx::cpu {
namespace {

// Where the channels of one narrow position (b, f, h, w) go in the wide array, and back.
struct PatchMap {
  int64_t frames, height, width, channels;  // narrow: (B, frames, height, width, channels patch)
  int64_t pt, ph, pw, drop, repeat, batch;
  int64_t patch, wide_frames, wide_row, wide_frame;  // strides of the wide array in elements
  std::vector<int64_t> offsets;                      // of the patch's elements, from its first one

  PatchMap(const Call& call, Operand narrow, Operand wide) {
    batch = narrow.dim(0), frames = narrow.dim(1), height = narrow.dim(2), width = narrow.dim(3);
    pt = call.integer(0), ph = call.integer(1), pw = call.integer(2);
    drop = call.integer(4), repeat = call.integer(5);
    patch = pt * ph * pw;
    channels = narrow.dim(4) / patch;
    wide_frames = frames * pt - drop;
    wide_row = width * pw * channels * repeat;
    wide_frame = height * ph * wide_row;
    const bool width_first = call.integer(3) == kTimeWidthHeight;
    for (int64_t t = 0; t < pt; ++t) {
      for (int64_t i = 0; i < ph * pw; ++i) {
        const int64_t h = width_first ? i % ph : i / pw, w = width_first ? i / ph : i % pw;
        offsets.push_back(t * wide_frame + h * wide_row + w * channels * repeat);
      }
    }
  }

  // Calls body(narrow element, wide element, first) for every position; patch elements before `first` are dropped.
  template <class Body>
  void for_positions(Body&& body) const {
    const double cost = static_cast<double>(width * channels * patch) * 0.6 + 10;
    parallel(batch * frames * height, cost, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t h = row % height, f = row / height % frames, b = row / height / frames;
        const int64_t frame = f * pt - drop;  // may be negative: its dropped part isn't touched
        const int64_t first = std::clamp<int64_t>(-frame, 0, pt) * ph * pw;
        const int64_t wide = (b * wide_frames + frame) * wide_frame + h * ph * wide_row;
        for (int64_t w = 0; w < width; ++w) {
          body((row * width + w) * channels * patch, wide + w * pw * channels * repeat, first);
        }
      }
    });
  }
};

// A position's channels as a (channels, patch) matrix, transposed to or from `patch` pieces. A patch size known to the
// compiler lets it use vector shuffles.
template <int kPatch, class T>
void spread(const T* narrow, T* wide, const int64_t* offsets, int64_t first, int64_t channels, int64_t patch) {
  if (kPatch) patch = kPatch;
  if (kPatch && !first) {
    T* out[kPatch ? kPatch : 1];
    for (int p = 0; p < kPatch; ++p) out[p] = wide + offsets[p];
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      for (int p = 0; p < kPatch; ++p) out[p][c] = narrow[c * kPatch + p];
    }
    return;
  }
  for (int64_t p = first; p < patch; ++p) {
    T* out = wide + offsets[p];
    for (int64_t c = 0; c < channels; ++c) out[c] = narrow[c * patch + p];
  }
}
template <int kPatch, class T>
void collect(T* narrow, const T* wide, const int64_t* offsets, int64_t first, int64_t channels, int64_t patch) {
  if (kPatch) patch = kPatch;
  if (kPatch && !first) {
    const T* in[kPatch ? kPatch : 1];
    for (int p = 0; p < kPatch; ++p) in[p] = wide + offsets[p];
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      for (int p = 0; p < kPatch; ++p) narrow[c * kPatch + p] = in[p][c];
    }
    return;
  }
  for (int64_t p = 0; p < patch; ++p) {
    for (int64_t c = 0; c < channels; ++c) narrow[c * patch + p] = p < first ? T{} : wide[offsets[p] + c];
  }
}

template <class Body>
void with_patch(int64_t patch, Body&& body) {
  switch (patch) {
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    case 8:
      return body(std::integral_constant<int, 8>{});
    default:
      return body(std::integral_constant<int, 0>{});
  }
}

// Moves need no arithmetic: elements as words of their size.
template <class Body>
void by_size(Operand x, Body&& body) {
  return x.dtype() == LTX_BF16 ? body(uint16_t{}) : body(uint32_t{});
}

int64_t checked_index(Operand index, int64_t i, int64_t limit) {
  const int64_t row = index.data<const int32_t>()[i];
  if (row < 0 || row >= limit) {
    throw std::runtime_error("index " + std::to_string(row) + " at position " + std::to_string(i) +
                             " is outside the table's " + std::to_string(limit) + " rows");
  }
  return row;
}

}  // namespace

void depth_to_space(const Call& call) {
  const Operand x = call[0], y = call[1];
  if (!x.size() || !y.size()) return;
  const PatchMap map(call, x, y);
  by_size(x, [&](auto tag) {
    using T = decltype(tag);
    const T* in = x.data<const T>();
    T* out = y.data<T>();
    with_patch(map.patch, [&](auto patch) {
      map.for_positions([&](int64_t narrow, int64_t wide, int64_t first) {
        spread<decltype(patch)::value>(in + narrow, out + wide, map.offsets.data(), first, map.channels, map.patch);
        for (int64_t p = first; p < map.patch && map.repeat > 1; ++p) {
          T* piece = out + wide + map.offsets[p];
          for (int64_t r = 1; r < map.repeat; ++r) std::copy_n(piece, map.channels, piece + r * map.channels);
        }
      });
    });
  });
}

void space_to_depth(const Call& call) {
  const Operand y = call[0], x = call[1];
  if (!x.size()) return;
  if (!y.size()) return zero(x);
  const PatchMap map(call, x, y);
  if (map.repeat == 1) {
    return by_size(x, [&](auto tag) {
      using T = decltype(tag);
      const T* in = y.data<const T>();
      T* out = x.data<T>();
      with_patch(map.patch, [&](auto patch) {
        map.for_positions([&](int64_t narrow, int64_t wide, int64_t first) {
          collect<decltype(patch)::value>(out + narrow, in + wide, map.offsets.data(), first, map.channels, map.patch);
        });
      });
    });
  }
  dispatch(x, [&](auto tag) {
    using T = decltype(tag);
    const T* in = y.data<const T>();
    T* out = x.data<T>();
    map.for_positions([&](int64_t narrow, int64_t wide, int64_t first) {
      for (int64_t p = 0; p < map.patch; ++p) {
        for (int64_t c = 0; c < map.channels; ++c) {
          float sum = 0;
          for (int64_t r = 0; r < map.repeat && p >= first; ++r) {
            sum += static_cast<float>(in[wide + map.offsets[p] + r * map.channels + c]);
          }
          out[narrow + c * map.patch + p] = T(sum);
        }
      }
    });
  });
}

void transpose(const Call& call) {
  const Operand x = call[0], y = call[1];
  if (!x.size()) return;
  const int64_t m = x.dim(-2), n = x.dim(-1), batch = x.size() / (m * n);
  constexpr int64_t kTile = 32;
  const int64_t tiles = (n + kTile - 1) / kTile;  // strips of kTile rows of y
  by_size(x, [&](auto tag) {
    using T = decltype(tag);
    parallel(batch * tiles, static_cast<double>(m * std::min(n, kTile)) * 0.8, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t j0 = k % tiles * kTile, columns = std::min(kTile, n - j0);
        const T* in = x.data<const T>() + k / tiles * m * n + j0;
        T* out = y.data<T>() + k / tiles * m * n + j0 * m;
        T tile[kTile][kTile];
        for (int64_t i0 = 0; i0 < m; i0 += kTile) {
          const int64_t rows = std::min(kTile, m - i0);
          for (int64_t i = 0; i < rows; ++i) std::copy_n(in + (i0 + i) * n, columns, tile[i]);
          for (int64_t j = 0; j < columns; ++j) {
            T* line = out + j * m + i0;
            for (int64_t i = 0; i < rows; ++i) line[i] = tile[i][j];
          }
        }
      }
    });
  });
}

void slice_last(const Call& call) {
  const Operand x = call[0], y = call[1];
  const int64_t from = x.columns(), to = y.columns(), start = call.integer(0);
  if (!y.size()) return;
  by_size(x, [&](auto tag) {
    using T = decltype(tag);
    const T* in = x.data<const T>() + start;
    T* out = y.data<T>();
    parallel(y.rows(), static_cast<double>(to) * 0.2 + 5, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) std::copy_n(in + r * from, to, out + r * to);
    });
  });
}

void slice_last_backward(const Call& call) {
  const Operand dy = call[0], dx = call[1];
  const int64_t from = dy.columns(), to = dx.columns(), start = call.integer(0);
  if (!dx.size()) return;
  by_size(dx, [&](auto tag) {
    using T = decltype(tag);
    const T* in = dy.data<const T>();
    T* out = dx.data<T>();
    parallel(dx.rows(), static_cast<double>(to) * 0.2 + 5, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        T* row = out + r * to;
        std::fill_n(row, start, T{});
        std::copy_n(in + r * from, from, row + start);
        std::fill(row + start + from, row + to, T{});
      }
    });
  });
}

void concat_last(const Call& call) {
  const Operand a = call[0], b = call[1], y = call[2];
  const int64_t left = a.columns(), right = b.columns(), columns = left + right;
  if (!y.size()) return;
  by_size(y, [&](auto tag) {
    using T = decltype(tag);
    const T *from_a = a.data<const T>(), *from_b = b.data<const T>();
    T* out = y.data<T>();
    parallel(y.rows(), static_cast<double>(columns) * 0.2 + 5, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        std::copy_n(from_a + r * left, left, out + r * columns);
        std::copy_n(from_b + r * right, right, out + r * columns + left);
      }
    });
  });
}

void gather_rows(const Call& call) {
  const Operand table = call[0], index = call[1], y = call[2];
  const int64_t rows = index.size(), columns = table.columns();
  for (int64_t i = 0; i < rows; ++i) checked_index(index, i, table.rows());
  if (!columns) return;
  parallel(rows, static_cast<double>(columns) * 0.3 + 20, [&](int64_t begin, int64_t end) {
    float buffer[kBlock];
    for (int64_t r = begin; r < end; ++r) {
      const int64_t from = index.data<const int32_t>()[r] * columns;
      for (int64_t c = 0; c < columns; c += kBlock) {
        const int64_t n = std::min(kBlock, columns - c);
        store(y, r * columns + c, n, load(table, from + c, n, buffer));
      }
    }
  });
}

void scatter_rows(const Call& call) {
  const Operand dy = call[0], index = call[1], dtable = call[2];
  const int64_t rows = index.size(), columns = dtable.columns(), entries = dtable.rows();
  float* out = dtable.data<float>();
  for_blocks(dtable.size(), 0.1, [&](int64_t i, int64_t n) { std::fill_n(out + i, n, 0.0f); });
  for (int64_t i = 0; i < rows; ++i) checked_index(index, i, entries);
  // Threads share the columns, so that every sum runs in the order of the indices.
  parallel(columns, static_cast<double>(rows) * 0.5, [&](int64_t begin, int64_t end) {
    float buffer[kBlock];
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = begin; c < end; c += kBlock) {
        const int64_t n = std::min(kBlock, end - c);
        const float* d = load(dy, r * columns + c, n, buffer);
        float* sum = out + index.data<const int32_t>()[r] * columns + c;
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) sum[j] += d[j];
      }
    }
  });
}

}  // namespace ltx::cpu
