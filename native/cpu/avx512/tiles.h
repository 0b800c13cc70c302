// Tiles of 16 rows of 64 bytes, the unit in which products read their operands: packed so that they lie one behind the
// other, whatever layout and dtype they came from. Compiled with AVX-512-BF16 and AMX: callers ask the processor first.
#pragma once
#include <immintrin.h>

#include "../common.h"
#include "../vmath.h"

namespace ltx::cpu {

constexpr int kTileRows = 16;
constexpr int64_t kTileBytes = 1024;

// Sixteen elements as they lie, as f32; in a partial line those behind `count` (which may be negative) are zero.
enum class Line { kFull, kPartial };
inline __mmask16 first16(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xFFFF : count <= 0 ? 0 : (1u << count) - 1);
}
inline __mmask32 first32(int64_t count) {
  return static_cast<__mmask32>(count >= 32 ? ~0u : count <= 0 ? 0 : (1u << count) - 1);
}
template <Line kLine>
__m256i load_bits(const bf16* p, int64_t count) {
  if constexpr (kLine == Line::kFull) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_maskz_loadu_epi16(first16(count), p);
}
template <Line kLine>
__m512 load_f32(const float* p, int64_t count) {
  if constexpr (kLine == Line::kFull) return _mm512_loadu_ps(p);
  return _mm512_maskz_loadu_ps(first16(count), p);
}
template <Line kLine>
__m512 load_f32(const bf16* p, int64_t count) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_bits<kLine>(p, count)), 16));
}

inline __m512i bits(__m512bh v) { return reinterpret_cast<__m512i&>(v); }
// bf16 of b in the upper half of each pair, of a in the lower: round to nearest even.
inline __m512i pair_bf16(__m512 a, __m512 b) {
  const __m256bh low = _mm512_cvtneps_pbh(a), high = _mm512_cvtneps_pbh(b);
  return _mm512_or_si512(_mm512_cvtepu16_epi32(reinterpret_cast<const __m256i&>(low)),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(reinterpret_cast<const __m256i&>(high)), 16));
}

inline __m512 widen(__m256i bf16s) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16s), 16)); }

// How a tile holds numbers. `row` is one line of an operand along the summed index, kDepth elements; `line` is one line
// across it, 16 elements wide, made of kLines neighbours on the summed index. Either gives 64 bytes a plane.

struct Bf16Format {
  static constexpr int kPlanes = 1, kDepth = 32, kLines = 2;
  struct Planes {
    __m512i plane[1];
  };
  template <Line kLine>
  static Planes row(const bf16* p, int64_t count) {
    if constexpr (kLine == Line::kFull) return {{_mm512_loadu_si512(p)}};
    return {{_mm512_maskz_loadu_epi16(first32(count), p)}};
  }
  template <Line kLine>
  static Planes row(const float* p, int64_t count) {
    return {{bits(_mm512_cvtne2ps_pbh(load_f32<kLine>(p + 16, count - 16), load_f32<kLine>(p, count)))}};
  }
  template <Line kLine>
  static Planes line(const bf16* const* rows, int64_t count) {
    const __m512i low = _mm512_cvtepu16_epi32(load_bits<kLine>(rows[0], count));
    const __m512i high = _mm512_cvtepu16_epi32(load_bits<kLine>(rows[1], count));
    return {{_mm512_or_si512(low, _mm512_slli_epi32(high, 16))}};
  }
  template <Line kLine>
  static Planes line(const float* const* rows, int64_t count) {
    return {{pair_bf16(load_f32<kLine>(rows[0], count), load_f32<kLine>(rows[1], count))}};
  }
};

// f32 as the sum of three bf16, which hold all of its 24 bits.
struct SplitFormat {
  static constexpr int kPlanes = 3, kDepth = 32, kLines = 2;
  struct Planes {
    __m512i plane[3];
  };
  template <Line kLine>
  static Planes row(const float* p, int64_t count) {
    __m512 low = load_f32<kLine>(p, count), high = load_f32<kLine>(p + 16, count - 16);
    Planes planes;
    for (__m512i& plane : planes.plane) {
      plane = bits(_mm512_cvtne2ps_pbh(high, low));
      low = _mm512_sub_ps(low, widen(_mm512_castsi512_si256(plane)));
      high = _mm512_sub_ps(high, widen(_mm512_extracti64x4_epi64(plane, 1)));
    }
    return planes;
  }
  template <Line kLine>
  static Planes line(const float* const* rows, int64_t count) {
    __m512 low = load_f32<kLine>(rows[0], count), high = load_f32<kLine>(rows[1], count);
    Planes planes;
    for (__m512i& plane : planes.plane) {
      plane = pair_bf16(low, high);
      low = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(plane, 16)));
      high = _mm512_sub_ps(high, _mm512_castsi512_ps(_mm512_and_si512(plane, _mm512_set1_epi32(-65536))));
    }
    return planes;
  }
};

struct F32Format {
  static constexpr int kPlanes = 1, kDepth = 16, kLines = 1;
  struct Planes {
    __m512i plane[1];
  };
  template <Line kLine, class T>
  static Planes row(const T* p, int64_t count) {
    return {{_mm512_castps_si512(load_f32<kLine>(p, count))}};
  }
  template <Line kLine, class T>
  static Planes line(const T* const* rows, int64_t count) {
    return {{_mm512_castps_si512(load_f32<kLine>(rows[0], count))}};
  }
};

// Sixteen vectors of sixteen 32-bit words, transposed.
inline void transpose(__m512i (&v)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    v[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    v[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    v[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xDD);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

// Read where an operand has only zeros.
alignas(64) inline constexpr float kZeros[32] = {};

// Writes lines (i) -> 64 bytes a plane, as they are or transposed, to a tile whose planes lie plane_bytes apart.
template <class Format, bool kTransposed, class Lines>
LTX_INLINE void write_tile(char* tile, int64_t plane_bytes, Lines&& lines) {
  if constexpr (!kTransposed) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const typename Format::Planes planes = lines(i);
#pragma GCC unroll 3
      for (int p = 0; p < Format::kPlanes; ++p) _mm512_store_si512(tile + p * plane_bytes + i * 64, planes.plane[p]);
    }
  } else {
    __m512i v[Format::kPlanes][kTileRows];
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const typename Format::Planes planes = lines(i);
#pragma GCC unroll 3
      for (int p = 0; p < Format::kPlanes; ++p) v[p][i] = planes.plane[p];
    }
#pragma GCC unroll 3
    for (int p = 0; p < Format::kPlanes; ++p) {
      transpose(v[p]);
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) _mm512_store_si512(tile + p * plane_bytes + i * 64, v[p][i]);
    }
  }
}

// A tile from 16 lines along the summed index, each with `count` elements: as it is (a left operand) or transposed (a
// right one).
template <class Format, bool kTransposed, class T>
void pack_rows(const T* const* rows, int64_t count, char* tile, int64_t plane_bytes) {
  if (count >= Format::kDepth) {
    write_tile<Format, kTransposed>(tile, plane_bytes,
                                    [&](int i) { return Format::template row<Line::kFull>(rows[i], count); });
  } else {
    write_tile<Format, kTransposed>(tile, plane_bytes,
                                    [&](int i) { return Format::template row<Line::kPartial>(rows[i], count); });
  }
}

// A tile from kDepth lines across the summed index, each with `count` elements: as it is (a right operand) or
// transposed (a left one).
template <class Format, bool kTransposed, class T>
void pack_lines(const T* const* rows, int64_t count, char* tile, int64_t plane_bytes) {
  constexpr int kLines = Format::kLines;
  if (count >= kTileRows) {
    write_tile<Format, kTransposed>(
        tile, plane_bytes, [&](int i) { return Format::template line<Line::kFull>(rows + i * kLines, count); });
  } else {
    write_tile<Format, kTransposed>(
        tile, plane_bytes, [&](int i) { return Format::template line<Line::kPartial>(rows + i * kLines, count); });
  }
}

}  // namespace ltx::cpu
