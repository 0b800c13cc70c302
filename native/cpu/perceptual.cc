// LPIPS: the weighted squared distance of two feature maps whose pixels are scaled to unit length.
#include <cmath>

#include "blocks.h"

namespace ltx::cpu {
namespace {

constexpr double kEps = 1e-10;
constexpr int64_t kPieceElements = 32768;

struct Features {
  int64_t samples, positions, channels;
  int64_t piece, pieces;  // positions that one thread sums up, pieces a sample: they depend on the shape alone

  Features(Operand a, Operand y) : samples(y.size()), channels(a.columns()) {
    const int64_t size = a.size();
    positions = size ? size / samples / channels : 0;
    piece = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, channels));
    pieces = (positions + piece - 1) / piece;
  }
};

// A pixel's features as f32 in a thread's buffer or in place, and what scales them to length one.
struct Pixel {
  const float* x;
  double norm, scale;

  Pixel(Operand operand, int64_t offset, int64_t channels, float* buffer) : x(load(operand, offset, channels, buffer)) {
    const float* values = x;
    norm = std::sqrt(static_cast<double>(sum_of(channels, [=](int64_t c) { return values[c] * values[c]; })));
    scale = 1.0 / (norm + kEps);
  }
};

// dx = d(distance) / dx from g, the gradient at the scaled pixel: scale (g - x (g . x) scale / norm).
void pixel_gradient(const Pixel& pixel, const float* g, float* dx, int64_t channels) {
  const float* x = pixel.x;
  const double along = sum_of(channels, [=](int64_t c) { return g[c] * x[c]; });
  const float scale = static_cast<float>(pixel.scale);
  const float share = pixel.norm > 0 ? static_cast<float>(along * pixel.scale / pixel.norm) : 0.0f;
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) dx[c] = scale * (g[c] - share * x[c]);
}

}  // namespace

void lpips_distance(const Call& call) {
  const Operand a = call[0], b = call[1], y = call[3];
  const Features f(a, y);
  zero(y);
  if (!f.positions) return;
  const int64_t channels = f.channels;
  const float* w = call[2].data<float>();
  double* partial = scratch<double>(3, f.samples * f.pieces);
  float* buffers = scratch<float>(0, omp_get_max_threads() * 2 * channels);
  parallel(f.samples * f.pieces, static_cast<double>(std::min(f.piece, f.positions) * channels) + 20,
           [&](int64_t begin, int64_t end) {
             float* buffer = buffers + omp_get_thread_num() * 2 * channels;
             for (int64_t i = begin; i < end; ++i) {
               const int64_t sample = i / f.pieces * f.positions, first = i % f.pieces * f.piece;
               double sum = 0;
               for (int64_t p = first; p < std::min(f.positions, first + f.piece); ++p) {
                 const Pixel pa(a, (sample + p) * channels, channels, buffer);
                 const Pixel pb(b, (sample + p) * channels, channels, buffer + channels);
                 const float *xa = pa.x, *xb = pb.x;
                 const float sa = static_cast<float>(pa.scale), sb = static_cast<float>(pb.scale);
                 sum += sum_of(channels, [=](int64_t c) {
                   const float d = xa[c] * sa - xb[c] * sb;
                   return w[c] * d * d;
                 });
               }
               partial[i] = sum;
             }
           });
  for (int64_t s = 0; s < f.samples; ++s) {
    double sum = 0;
    for (int64_t i = 0; i < f.pieces; ++i) sum += partial[s * f.pieces + i];
    y.data<float>()[s] = static_cast<float>(sum / static_cast<double>(f.positions));
  }
}

void lpips_distance_backward(const Call& call) {
  const Operand a = call[0], b = call[1], dy = call[3], da = call[4], db = call[5];
  const Features f(a, dy);
  if (!f.positions) return;
  const int64_t channels = f.channels;
  const float* w = call[2].data<float>();
  float* buffers = scratch<float>(0, omp_get_max_threads() * 4 * channels);
  parallel(f.samples * f.positions, static_cast<double>(channels) * 2.0 + 20, [&](int64_t begin, int64_t end) {
    float* buffer = buffers + omp_get_thread_num() * 4 * channels;
    float *g = buffer + 2 * channels, *space = g + channels;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t offset = p * channels;
      const Pixel pa(a, offset, channels, buffer);
      const Pixel pb(b, offset, channels, buffer + channels);
      const float *xa = pa.x, *xb = pb.x;
      const float sa = static_cast<float>(pa.scale), sb = static_cast<float>(pb.scale);
      float upstream;
      const float d = 2.0f * load(dy, p / f.positions, 1, &upstream)[0] / static_cast<float>(f.positions);
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) g[c] = d * w[c] * (xa[c] * sa - xb[c] * sb);
      if (da) {
        float* out = target(da, offset, space);
        pixel_gradient(pa, g, out, channels);
        store(da, offset, channels, out);
      }
      if (!db) continue;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) g[c] = -g[c];
      float* out = target(db, offset, space);
      pixel_gradient(pb, g, out, channels);
      store(db, offset, channels, out);
    }
  });
}

}  // namespace ltx::cpu
