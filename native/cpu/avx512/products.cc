#include "../products.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <list>

#include "../linear.h"
#include "../unary.h"
#include "multiply.h"

namespace ltx::cpu {
namespace {

// --- Which row of an operand a row of the implicit matrix is, by tap.

constexpr int32_t kNowhere = -1;

// For each tap and each row of the result (within an entry of the batch) a row of the source (within that entry); rows
// from `entry` on are those of the sums of frames that backward_table speaks of.
struct Table {
  Key key;
  std::vector<int32_t> rows;
};

// The last used tables stay: layers of one geometry share theirs.
template <class Fill>
const int32_t* table_for(Key key, int64_t size, Fill&& fill) {
  constexpr size_t kKept = 32;
  thread_local std::list<Table> tables;
  const auto found = std::find_if(tables.begin(), tables.end(), [&](const Table& t) { return t.key == key; });
  if (found != tables.end()) {
    tables.splice(tables.begin(), tables, found);
  } else {
    if (tables.size() >= kKept) tables.pop_back();
    tables.push_front({std::move(key), std::vector<int32_t>(static_cast<size_t>(size))});
    fill(tables.front().rows.data());
  }
  return tables.front().rows.data();
}

Key geometry(const Shape& s, int64_t kind) {
  return {kind,        s.frames, s.height,   s.width,    s.out_frames, s.out_height,
          s.out_width, s.taps,   s.kernel_h, s.kernel_w, s.stride_t,   s.stride_h,
          s.stride_w,  s.front,  s.pad_h,    s.pad_w,    s.replicate};
}

int64_t tap_count(const Shape& s) { return s.taps * s.kernel_h * s.kernel_w; }
int64_t positions_in(const Shape& s) { return s.frames * s.height * s.width; }
int64_t positions_out(const Shape& s) { return s.out_frames * s.out_height * s.out_width; }

// The frame of x that output frame o sees under tap k, or -1.
int64_t frame_under(const Shape& s, int64_t o, int64_t k) {
  const int64_t frame = o * s.stride_t + k - s.front;
  if (s.replicate) return std::clamp(frame, int64_t{0}, s.frames - 1);
  return frame < s.frames ? std::max<int64_t>(frame, -1) : -1;
}

// Which row of x each row of y sees.
const int32_t* forward_table(const Shape& s) {
  return table_for(geometry(s, 0), tap_count(s) * positions_out(s), [&](int32_t* to) {
    for (int64_t k = 0; k < s.taps; ++k)
      for (int64_t i = 0; i < s.kernel_h; ++i)
        for (int64_t j = 0; j < s.kernel_w; ++j)
          for (int64_t o = 0; o < s.out_frames; ++o) {
            const int64_t frame = frame_under(s, o, k);
            for (int64_t y = 0; y < s.out_height; ++y)
              for (int64_t x = 0; x < s.out_width; ++x) {
                const int64_t h = y * s.stride_h + i - s.pad_h, w = x * s.stride_w + j - s.pad_w;
                const bool inside = frame >= 0 && h >= 0 && h < s.height && w >= 0 && w < s.width;
                *to++ = inside ? static_cast<int32_t>((frame * s.height + h) * s.width + w) : kNowhere;
              }
          }
  });
}

// The output frames that see frame f of x under tap k: more than one only where f is repeated.
template <class Body>
void each_output(const Shape& s, int64_t f, int64_t k, Body&& body) {
  for (int64_t o = 0; o < s.out_frames; ++o) {
    if (frame_under(s, o, k) == f) body(o);
  }
}
bool is_end(const Shape& s, int64_t f) { return s.replicate && (f == 0 || f == s.frames - 1); }
// Where the sum of several frames of dy lies behind an entry's own: one for each end and tap.
int64_t end_index(const Shape& s, int64_t f, int64_t k) { return (f == 0 ? 0 : s.taps) + k; }

// Which row of dy each row of x is seen by.
const int32_t* backward_table(const Shape& s) {
  return table_for(geometry(s, 1), tap_count(s) * positions_in(s), [&](int32_t* to) {
    for (int64_t k = 0; k < s.taps; ++k)
      for (int64_t i = 0; i < s.kernel_h; ++i)
        for (int64_t j = 0; j < s.kernel_w; ++j)
          for (int64_t f = 0; f < s.frames; ++f) {
            int64_t frame = -1, count = 0;
            if (is_end(s, f)) {
              each_output(s, f, k, [&](int64_t o) { frame = o, ++count; });
              if (count > 1) frame = s.out_frames + end_index(s, f, k);
            } else if (const int64_t at = f + s.front - k; at >= 0 && at % s.stride_t == 0) {
              frame = at / s.stride_t < s.out_frames ? at / s.stride_t : -1;
            }
            for (int64_t y = 0; y < s.height; ++y)
              for (int64_t x = 0; x < s.width; ++x) {
                const int64_t h = y + s.pad_h - i, w = x + s.pad_w - j;
                const bool inside = frame >= 0 && h >= 0 && h % s.stride_h == 0 && h / s.stride_h < s.out_height &&
                                    w >= 0 && w % s.stride_w == 0 && w / s.stride_w < s.out_width;
                *to++ =
                    inside
                        ? static_cast<int32_t>((frame * s.out_height + h / s.stride_h) * s.out_width + w / s.stride_w)
                        : kNowhere;
              }
          }
  });
}

// Sums of the frames of dy that see a repeated frame, (B, 2 taps, P, Co).
template <class T>
const T* end_sums(const Shape& s, const T* dy) {
  const int64_t size = s.out_frame_size();
  T* sums = scratch<T>(6, s.batch * 2 * s.taps * size);
  parallel(s.batch, static_cast<double>(2 * s.taps * size), [&](int64_t begin, int64_t stop) {
    for (int64_t b = begin; b < stop; ++b) {
      for (const int64_t f : {int64_t{0}, s.frames - 1}) {
        for (int64_t k = 0; k < s.taps; ++k) {
          int64_t count = 0;
          each_output(s, f, k, [&](int64_t) { ++count; });
          if (count < 2) continue;
          T* to = sums + (b * 2 * s.taps + end_index(s, f, k)) * size;
          constexpr int64_t kPart = 256;
          for (int64_t i = 0; i < size; i += kPart) {
            float sum[kPart] = {};
            const int64_t n = std::min(kPart, size - i);
            each_output(s, f, k, [&](int64_t o) {
              const T* from = dy + (b * s.out_frames + o) * size + i;
              for (int64_t j = 0; j < n; ++j) sum[j] += static_cast<float>(from[j]);
            });
            for (int64_t j = 0; j < n; ++j) to[i + j] = sum[j];
          }
        }
      }
    }
  });
  return sums;
}

// The rows of an operand as the implicit matrix has them.
template <class T>
struct Rows {
  const T* data;
  int64_t count, channels;         // of the implicit matrix, of a row
  const int32_t* table = nullptr;  // NULL: row by row
  int64_t entry = 0, source = 0;   // rows of an entry of the batch: of the result, of the source
  const T* sums = nullptr;         // behind the source's rows
  int64_t sums_entry = 0;

  static const T* zeros() { return reinterpret_cast<const T*>(kZeros); }

  // The N rows from `first` on under a tap; zeros behind the last.
  template <int N>
  void find(int64_t tap, int64_t first, const T** rows) const {
    if (!table) {
      for (int i = 0; i < N; ++i) rows[i] = first + i < count ? data + (first + i) * channels : zeros();
      return;
    }
    int64_t b = first / entry, q = first - b * entry;
    const int32_t* line = table + tap * entry;
    for (int i = 0; i < N; ++i) {
      const int32_t row = first + i < count ? line[q] : kNowhere;
      if (row < source)
        rows[i] = row < 0 ? zeros() : data + (b * source + row) * channels;
      else
        rows[i] = sums + (b * sums_entry + row - source) * channels;
      if (++q == entry) q = 0, ++b;
    }
  }

  // Those rows from channel c on.
  template <int N>
  void shift(const T* const* rows, int64_t c, const T** out) const {
    for (int i = 0; i < N; ++i) out[i] = rows[i] == zeros() ? rows[i] : rows[i] + c;
  }
};

template <class T>
Rows<T> forward_rows(const Layer& layer, Operand x) {
  Rows<T> rows{x.data<const T>(), layer.rows, layer.in};
  if (const Shape* s = layer.shape) {
    rows.table = forward_table(*s);
    rows.entry = positions_out(*s), rows.source = positions_in(*s);
  }
  return rows;
}

template <class T>
Rows<T> backward_rows(const Layer& layer, Operand dy, Operand dx) {
  Rows<T> rows{dy.data<const T>(), dx.size() / layer.in, layer.out};
  if (const Shape* s = layer.shape) {
    rows.table = backward_table(*s);
    rows.entry = positions_in(*s), rows.source = positions_out(*s);
    if (s->replicate) rows.sums = end_sums(*s, rows.data);
    rows.sums_entry = 2 * s->taps * s->out_height * s->out_width;
  }
  return rows;
}

// --- Packing. A panel's step is two tiles a plane.

constexpr int64_t kPlane = 2 * kTileBytes;

// Left panels of an implicit matrix whose columns are (tap, channel).
template <class Format, class T>
auto left_of(const Rows<T>& rows) {
  const int64_t per_tap = (rows.channels + Format::kDepth - 1) / Format::kDepth;
  return [&rows, per_tap](const Part& part) {
    const T *line[kBlockRows], *at[kBlockRows];
    for (int64_t block = part.block; block < part.block + part.blocks; ++block) {
      int64_t last = -1;
      for (int64_t step = part.begin; step < part.end; ++step) {
        const int64_t tap = step / per_tap, c = (step - tap * per_tap) * Format::kDepth;
        if (tap != last) rows.template find<kBlockRows>(last = tap, block * kBlockRows, line);
        rows.template shift<kBlockRows>(line, c, at);
        char* out = part.at(block, step);
        pack_rows<Format, false>(at, rows.channels - c, out, kPlane);
        pack_rows<Format, false>(at + kTileRows, rows.channels - c, out + kTileBytes, kPlane);
      }
    }
  };
}

// Two tiles of kDepth lines across the summed index, from a channel on.
template <class Format, bool kTransposed, class T>
void pack_pair(const T* const* rows, int64_t channels, char* out) {
  pack_lines<Format, kTransposed>(rows, channels, out, kPlane);
  const T* right[Format::kDepth];
  for (int i = 0; i < Format::kDepth; ++i) {
    right[i] = rows[i] == Rows<T>::zeros() || channels <= kTileRows ? Rows<T>::zeros() : rows[i] + kTileRows;
  }
  pack_lines<Format, kTransposed>(right, channels - kTileRows, out + kTileBytes, kPlane);
}

// --- Results

inline __m512 load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load(const bf16* p, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}

// bf16 to nearest even without AVX-512-BF16.
inline __m256i round_bf16(__m512 v) {
  const __m512i u = _mm512_castps_si512(v), high = _mm512_srli_epi32(u, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i near = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)), odd), 16);
  const __m512i nan = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(near, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), nan));
}
template <bool kNative>
void store(bf16* p, __mmask16 mask, __m512 v) {
  if constexpr (kNative) {
    const __m256bh near = _mm512_cvtneps_pbh(v);
    _mm256_mask_storeu_epi16(p, mask, reinterpret_cast<const __m256i&>(near));
  } else {
    _mm256_mask_storeu_epi16(p, mask, round_bf16(v));
  }
}
template <bool kNative>
void store(float* p, __mmask16 mask, __m512 v) {
  _mm512_mask_storeu_ps(p, mask, v);
}

// Calls body(element offset in a (rows, columns) matrix, mask, sums of up to 16 columns) for a block's parts.
template <class Body>
void each_part(int64_t row, int64_t rows, int64_t column, int64_t columns, float* sums, Body&& body) {
  const int64_t height = std::min(kBlockRows, rows - row * kBlockRows);
  for (int64_t half = 0; half < 2; ++half) {
    const int64_t first = column * kBlockColumns + half * 16;
    if (first >= columns) return;
    const __mmask16 mask = first16(columns - first);
    for (int64_t r = 0; r < height; ++r) {
      body((row * kBlockRows + r) * columns + first, first, mask, sums + r / 16 * 512 + half * 256 + r % 16 * 16);
    }
  }
}

// --- The three products of a layer

template <class Kernel, class PackLeft, class PackRight, class Store>
void multiply(const Product& p, PackLeft&& left, PackRight&& right, Store&& store) {
  if (p.rows >= p.columns || !left_fits<Kernel>(p))
    multiply_by_rows<Kernel>(p, left, right, store);
  else
    multiply_by_columns<Kernel>(p, left, right, store);
}

template <class Kernel, bool kNative, class T, class W>
void forward(const Layer& layer, Operand x, Operand w, Operand bias, Operand residual, Operand y, Operand pre,
             Unary act) {
  using Format = typename Kernel::Format;
  using Right = typename Kernel::RightFormat;
  const Rows<T> rows = forward_rows<T>(layer, x);
  const W* weight = w.data<const W>();
  const int64_t in = layer.in, out = layer.out, taps = layer.taps, per_tap = (in + Format::kDepth - 1) / Format::kDepth;
  // Block by block: each of a block's rows is read in one run.
  const auto right = [=](const Part& part) {
    for (int64_t block = part.block; block < part.block + part.blocks; ++block) {
      for (int64_t step = part.begin; step < part.end; ++step) {
        const int64_t tap = step / per_tap, c = (step - tap * per_tap) * Format::kDepth;
        const W* lines[kBlockColumns];
        for (int64_t i = 0; i < kBlockColumns; ++i) {
          const int64_t n = block * kBlockColumns + i;
          lines[i] = n < out ? weight + (n * taps + tap) * in + c : Rows<W>::zeros();
        }
        char* to = part.at(block, step);
        pack_rows<Right, true>(lines, in - c, to, kPlane);
        pack_rows<Right, true>(lines + kTileRows, in - c, to + kTileBytes, kPlane);
      }
    }
  };
  const auto finish = [=](int64_t row, int64_t column, float* sums, bool) {
    if (bias || residual) {
      each_part(row, layer.rows, column, out, sums, [&](int64_t at, int64_t first, __mmask16 mask, float* part) {
        __m512 v = _mm512_load_ps(part);
        if (bias) v = _mm512_add_ps(v, load(bias.data<const float>() + first, mask));
        if (residual) v = _mm512_add_ps(v, load(residual.data<const T>() + at, mask));
        _mm512_store_ps(part, v);
      });
    }
    const auto write = [&](Operand to) {
      each_part(row, layer.rows, column, out, sums, [&](int64_t at, int64_t, __mmask16 mask, float* part) {
        store<kNative>(to.data<T>() + at, mask, _mm512_load_ps(part));
      });
    };
    if (pre) write(pre);
    if (act != kUnaryNone) unary_block(act, sums, sums, kBlockSums);
    write(y);
  };
  multiply<Kernel>({layer.rows, out, taps * per_tap}, left_of<Format>(rows), right, finish);
}

template <class Kernel, bool kNative, class T, class W>
void backward_input(const Layer& layer, Operand dy, Operand w, Operand dx, bool accumulate) {
  using Format = typename Kernel::Format;
  using Right = typename Kernel::RightFormat;
  const Rows<T> rows = backward_rows<T>(layer, dy, dx);
  const W* weight = w.data<const W>();
  const int64_t in = layer.in, out = layer.out, taps = layer.taps;
  const int64_t per_tap = (out + Format::kDepth - 1) / Format::kDepth;
  // Step by step: each row is read in a run over all blocks.
  const auto right = [=](const Part& part) {
    for (int64_t step = part.begin; step < part.end; ++step) {
      const int64_t tap = step / per_tap, c = (step - tap * per_tap) * Format::kDepth;
      for (int64_t block = part.block; block < part.block + part.blocks; ++block) {
        const int64_t first = block * kBlockColumns;
        const W* lines[Format::kDepth];
        for (int64_t i = 0; i < Format::kDepth; ++i)
          lines[i] = c + i < out ? weight + ((c + i) * taps + tap) * in + first : Rows<W>::zeros();
        pack_pair<Right, false>(lines, in - first, part.at(block, step));
      }
    }
  };
  const Product product = {rows.count, in, taps * per_tap};
  dispatch(dx, [&](auto tag) {
    using To = decltype(tag);
    multiply<Kernel>(product, left_of<Format>(rows), right, [=](int64_t row, int64_t column, float* sums, bool) {
      each_part(row, product.rows, column, in, sums, [&](int64_t at, int64_t, __mmask16 mask, float* part) {
        To* to = dx.data<To>() + at;
        __m512 v = _mm512_load_ps(part);
        if (accumulate) v = _mm512_add_ps(v, load(to, mask));
        store<kNative>(to, mask, v);
      });
    });
  });
}

template <class Kernel, class T>
void backward_weight(const Layer& layer, Operand x, Operand dy, Operand dw) {
  using Format = typename Kernel::Format;
  const Rows<T> rows = forward_rows<T>(layer, x), outputs{dy.data<const T>(), layer.rows, layer.out};
  const int64_t in = layer.in, out = layer.out, taps = layer.taps;
  const int64_t per_tap = (in + kBlockColumns - 1) / kBlockColumns;
  const auto left = [&](const Part& part) {
    const T *line[Format::kDepth], *at[Format::kDepth];
    for (int64_t step = part.begin; step < part.end; ++step) {
      outputs.template find<Format::kDepth>(0, step * Format::kDepth, line);
      for (int64_t block = part.block; block < part.block + part.blocks; ++block) {
        outputs.template shift<Format::kDepth>(line, block * kBlockRows, at);
        pack_pair<Format, true>(at, out - block * kBlockRows, part.at(block, step));
      }
    }
  };
  const auto right = [&](const Part& part) {
    const T *line[Format::kDepth], *at[Format::kDepth];
    for (int64_t step = part.begin; step < part.end; ++step) {
      int64_t last = -1;
      for (int64_t block = part.block; block < part.block + part.blocks; ++block) {
        const int64_t tap = block / per_tap, c = (block - tap * per_tap) * kBlockColumns;
        if (tap != last) rows.template find<Format::kDepth>(last = tap, step * Format::kDepth, line);
        rows.template shift<Format::kDepth>(line, c, at);
        pack_pair<Format, false>(at, in - c, part.at(block, step));
      }
    }
  };
  float* weight = dw.data<float>();
  const bool large = dw.size() >= int64_t{1} << 20;
  const Product product = {out, taps * per_tap * kBlockColumns, (layer.rows + Format::kDepth - 1) / Format::kDepth};
  multiply_by_columns<Kernel>(product, left, right, [=](int64_t row, int64_t block, float* sums, bool add) {
    const int64_t tap = block / per_tap, column = block - tap * per_tap;
    each_part(row, out, column, in, sums, [&](int64_t, int64_t first, __mmask16 mask, float* part) {
      const int64_t offset = part - sums, r = row * kBlockRows + offset / 512 * 16 + offset % 256 / 16;
      float* to = weight + (r * taps + tap) * in + first;
      __m512 v = _mm512_load_ps(part);
      if (add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, to));
      // Nobody reads a large gradient before it has left the caches: whole lines need not be fetched to be written.
      if (large && mask == 0xFFFF && reinterpret_cast<uintptr_t>(to) % 64 == 0)
        _mm512_stream_ps(to, v);
      else
        _mm512_mask_storeu_ps(to, mask, v);
    });
  });
}

// --- What the processor has

bool may_use_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool has = (d >> 22 & 1) && (d >> 24 & 1);  // AMX-BF16, AMX-TILE
  return has && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Tiles find_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
  if (!bf16) return Tiles::kF32;
  const char* wanted = std::getenv("LTX_CPU_ISA");
  return !wanted && may_use_amx() ? Tiles::kAmx : Tiles::kBf16;
}

// Calls body(kernel, native bf16, element type of the activations, of the weight or its gradient).
template <class Body>
void choose(Operand x, Operand w, Body&& body) {
  dispatch(w, [&](auto weight) {
    if (x.dtype() == LTX_BF16) {
      if (tiles() == Tiles::kAmx) return body(AmxBf16{}, std::true_type{}, bf16{}, weight);
      if (tiles() == Tiles::kBf16) return body(Avx512Bf16{}, std::true_type{}, bf16{}, weight);
      return body(Avx512F32{}, std::false_type{}, bf16{}, weight);
    }
    using AmxKernel = std::conditional_t<std::is_same_v<decltype(weight), bf16>, AmxSplitBf16, AmxSplit>;
    if (tiles() == Tiles::kAmx) return body(AmxKernel{}, std::true_type{}, float{}, weight);
    body(Avx512F32{}, std::false_type{}, float{}, weight);
  });
}

}  // namespace

Tiles tiles() {
  static const Tiles found = find_tiles();
  return found;
}

void tiled_forward(const Layer& layer, Operand x, Operand w, Operand bias, Operand residual, Operand y, Operand pre,
                   Unary act) {
  choose(x, w, [&](auto kernel, auto native, auto tag, auto weight) {
    forward<decltype(kernel), decltype(native)::value, decltype(tag), decltype(weight)>(layer, x, w, bias, residual, y,
                                                                                        pre, act);
  });
}

void tiled_backward_input(const Layer& layer, Operand dy, Operand w, Operand dx, bool accumulate) {
  choose(dy, w, [&](auto kernel, auto native, auto tag, auto weight) {
    backward_input<decltype(kernel), decltype(native)::value, decltype(tag), decltype(weight)>(layer, dy, w, dx,
                                                                                               accumulate);
  });
}

void tiled_backward_weight(const Layer& layer, Operand x, Operand dy, Operand dw, Operand dbias) {
  choose(x, dw, [&](auto kernel, auto, auto tag, auto gradient) {
    if constexpr (std::is_same_v<decltype(gradient), float>) {
      backward_weight<decltype(kernel), decltype(tag)>(layer, x, dy, dw);
    }
  });
  bias_gradient(dy, dbias);
}

}  // namespace ltx::cpu
