// The innermost loops: 32 x 32 sums over packed tiles. A left panel has, for each step of kDepth summed elements, two
// tiles (32 rows) a plane, a right panel two tiles (32 columns) a plane. Sums are four tiles of f32: [row / 16][column
// / 16][16][16]; `add` adds to what is there.
#pragma once
#include "tiles.h"

namespace ltx::cpu {

constexpr int64_t kBlockRows = 32, kBlockColumns = 32, kBlockSums = kBlockRows * kBlockColumns;

// Tile registers 0 to 3 hold sums, 4 and 5 left tiles, 6 and 7 right ones.
struct AmxTiles {
  AmxTiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~AmxTiles() { _tile_release(); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

  static void load_sums(const float* sums, bool add) {
    if (add) {
      _tile_loadd(0, sums, 64);
      _tile_loadd(1, sums + 256, 64);
      _tile_loadd(2, sums + 512, 64);
      _tile_loadd(3, sums + 768, 64);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  static void store_sums(float* sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
  }
  // The four products of a step; loads stand between products, so that neither unit waits.
  template <bool kNewLeft>
  static void multiply(const char* a, const char* b) {
    _tile_loadd(6, b, 64);
    if constexpr (kNewLeft) _tile_loadd(4, a, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + kTileBytes, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kNewLeft) _tile_loadd(5, a + kTileBytes, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
};

struct AmxBf16 {
  using Format = Bf16Format;
  using RightFormat = Format;
  using Thread = AmxTiles;  // what a thread needs while it multiplies
  static void multiply(const char* a, const char* b, int64_t steps, float* sums, bool add) {
    AmxTiles::load_sums(sums, add);
    for (; steps > 0; --steps, a += 2 * kTileBytes, b += 2 * kTileBytes) AmxTiles::multiply<true>(a, b);
    AmxTiles::store_sums(sums);
  }
};

// f32 by six products of bf16 parts: high high, high middle, middle high, middle middle, high low, low high. What is
// left out is below 2^-24 of a product, as f32's own rounding is. Small parts are added first.
struct AmxSplit {
  using Format = SplitFormat;
  using RightFormat = Format;
  using Thread = AmxTiles;
  static void multiply(const char* a, const char* b, int64_t steps, float* sums, bool add) {
    constexpr int64_t kPlane = 2 * kTileBytes;
    AmxTiles::load_sums(sums, add);
    for (; steps > 0; --steps, a += 3 * kPlane, b += 3 * kPlane) {
      AmxTiles::multiply<true>(a + 2 * kPlane, b);       // low high
      AmxTiles::multiply<true>(a, b + 2 * kPlane);       // high low
      AmxTiles::multiply<true>(a + kPlane, b + kPlane);  // middle middle
      AmxTiles::multiply<false>(a, b);                   // middle high
      AmxTiles::multiply<true>(a, b + kPlane);           // high middle
      AmxTiles::multiply<false>(a, b);                   // high high
    }
    AmxTiles::store_sums(sums);
  }
};

// f32 by bf16, whose other parts would be zero: the same sums to the bit.
struct AmxSplitBf16 {
  using Format = SplitFormat;
  using RightFormat = Bf16Format;
  using Thread = AmxTiles;
  static void multiply(const char* a, const char* b, int64_t steps, float* sums, bool add) {
    constexpr int64_t kPlane = 2 * kTileBytes;
    AmxTiles::load_sums(sums, add);
    for (; steps > 0; --steps, a += 3 * kPlane, b += kPlane) {
      AmxTiles::multiply<true>(a + 2 * kPlane, b);
      AmxTiles::multiply<true>(a + kPlane, b);
      AmxTiles::multiply<true>(a, b);
    }
    AmxTiles::store_sums(sums);
  }
};

struct NoState {
  NoState() {}  // a variable of this type is not unused
};

// Without AMX: 8 x 32 sums in 16 registers, left elements broadcast. kFuse(sum, left word, right vector).
template <class Format_, class Fuse>
struct Avx512 {
  using Format = Format_;
  using RightFormat = Format;
  using Thread = NoState;
  static void multiply(const char* a, const char* b, int64_t steps, float* sums, bool add) {
    for (int64_t top = 0; top < kBlockRows; top += 8) {
      const char* left = a + top * 64;
      const char* right = b;
      float* out = sums + top / 16 * 512 + top % 16 * 16;
      __m512 sum[8][2];
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        sum[r][0] = add ? _mm512_load_ps(out + r * 16) : _mm512_setzero_ps();
        sum[r][1] = add ? _mm512_load_ps(out + 256 + r * 16) : _mm512_setzero_ps();
      }
      for (int64_t step = 0; step < steps; ++step, left += 2 * kTileBytes, right += 2 * kTileBytes) {
        for (int64_t i = 0; i < 16; ++i) {
          const __m512i b0 = _mm512_load_si512(right + i * 64), b1 = _mm512_load_si512(right + kTileBytes + i * 64);
#pragma GCC unroll 8
          for (int r = 0; r < 8; ++r) {
            int32_t word;
            std::memcpy(&word, left + r * 64 + i * 4, 4);
            const __m512i a0 = _mm512_set1_epi32(word);
            sum[r][0] = Fuse::fuse(sum[r][0], a0, b0);
            sum[r][1] = Fuse::fuse(sum[r][1], a0, b1);
          }
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        _mm512_store_ps(out + r * 16, sum[r][0]);
        _mm512_store_ps(out + 256 + r * 16, sum[r][1]);
      }
    }
  }
};

struct FuseF32 {
  static __m512 fuse(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
};
struct FuseBf16 {
  static __m512 fuse(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<const __m512bh&>(a), reinterpret_cast<const __m512bh&>(b));
  }
};
using Avx512F32 = Avx512<F32Format, FuseF32>;
using Avx512Bf16 = Avx512<Bf16Format, FuseBf16>;

}  // namespace ltx::cpu
