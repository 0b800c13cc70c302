// Philox 4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC11),
// and what is made of its words. Key: the seed's low and high word. Counter: the block index's low and high word, step,
// purpose. Element i of a stream is made of block i / 4.
//
// Both backends compile this file and give the same bits: every multiplication that meets an addition is written as a
// fused one, so that no compiler has a choice, and nothing calls a mathematics library. The polynomials are minimax
// fits.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

// Put in front of every function; the CUDA backend defines it as `__host__ __device__`.
#ifndef LTX_HD
#define LTX_HD
#endif

namespace ltx {

// Ten rounds over a counter, in place.
LTX_HD inline void philox4x32(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0, p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Uniform in [0, 1), 24 bits.
LTX_HD inline float philox_uniform(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

// ln x for a positive normal x.
LTX_HD inline float philox_log(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const int32_t exponent = static_cast<int32_t>(bits - 0x3F3504F3u) >> 23;  // leaves a mantissa in [sqrt(1/2), sqrt 2)
  bits -= static_cast<uint32_t>(exponent) << 23;
  float mantissa;
  memcpy(&mantissa, &bits, 4);
  const float e = static_cast<float>(exponent), f = mantissa - 1.0f, z = f * f;
  float p = -7.862204313e-2f;
  p = fmaf(p, f, 1.288322806e-1f);
  p = fmaf(p, f, -1.312844157e-1f);
  p = fmaf(p, f, 1.418090612e-1f);
  p = fmaf(p, f, -1.662455946e-1f);
  p = fmaf(p, f, 2.000230253e-1f);
  p = fmaf(p, f, -2.500081062e-1f);
  p = fmaf(p, f, 3.333331645e-1f);
  p = fmaf(p, f, -0.5f);
  p = fmaf(e, 1.428606820e-6f, z * p);  // ln 2 = 0.693145752 + 1.4286e-6; the first part times e is exact
  return fmaf(e, 0.693145752f, f + p);
}

// cos and sin of (quarter + rest) quarter turns, |rest| <= 1/2.
LTX_HD inline void sincos_quarters(int32_t quarter, float rest, float& cosine, float& sine) {
  const float z = rest * rest;
  float s = -4.689316265e-3f;
  s = fmaf(s, z, 7.971354574e-2f);
  s = fmaf(s, z, -6.459667087e-1f);
  s = fmaf(s, z, 1.570796371f) * rest;
  float c = 8.935732185e-4f;
  c = fmaf(c, z, -2.085525356e-2f);
  c = fmaf(c, z, 2.536685169e-1f);
  c = fmaf(c, z, -1.233700514f);
  c = fmaf(c, z, 1.0f);
  const bool swap = quarter & 1;
  cosine = swap ? s : c;
  sine = swap ? c : s;
  cosine = (quarter + 1) & 2 ? -cosine : cosine;
  sine = quarter & 2 ? -sine : sine;
}

// Two independent standard normals from two words (Box-Muller).
LTX_HD inline void philox_normal(uint32_t a, uint32_t b, float& first, float& second) {
  const float radius = sqrtf(-2.0f * philox_log(static_cast<float>((a >> 8) + 1) * 0x1p-24f));
  // The turn is a whole number of 2^-24: its nearest quarter and what is left are exact.
  const int32_t turn = static_cast<int32_t>(b >> 8), quarter = (turn + (1 << 21)) >> 22;
  float cosine, sine;
  sincos_quarters(quarter, static_cast<float>(turn - (quarter << 22)) * 0x1p-22f, cosine, sine);
  first = radius * cosine;
  second = radius * sine;
}

}  // namespace ltx
