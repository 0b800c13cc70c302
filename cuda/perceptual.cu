// LPIPS: the weighted squared distance of two feature maps whose pixels are scaled to unit length. A pixel belongs to a
// few neighbouring lanes, which read its channels more than once: from the second time on they lie in L1.
#include "columns.cuh"
#include "map.cuh"

namespace ltx::cuda {
namespace {

constexpr float kEps = 1e-10f;
constexpr int kWidth = 4;  // channels of an access where they are a multiple of it
constexpr int64_t kPieceElements = 32768;

struct Features {
  int64_t samples, positions;
  int channels;
  int64_t piece, pieces;  // positions that a block sums up, pieces a sample: they depend on the shape alone
  int width, lanes;       // channels of an access, lanes of a pixel

  Features(std::initializer_list<Operand> maps, Operand y) : samples(y.size()) {
    const Operand a = *maps.begin();
    channels = static_cast<int>(a.columns());
    positions = a.size() ? a.size() / samples / channels : 0;
    piece = std::max<int64_t>(1, kPieceElements / std::max(1, channels));
    pieces = divide_up(positions, piece);
    const bool whole = channels % kWidth == 0 &&
                       std::all_of(maps.begin(), maps.end(), [](Operand map) { return !map || fits(map, kWidth); });
    width = whole ? kWidth : 1;
    lanes = 1;
    while (lanes < kWarp && lanes * width * 2 <= channels) lanes *= 2;
  }
};

// What a thread does for a pixel: every lanes-th group of V channels.
template <int V>
struct Pixel {
  const Features& f;
  const Mixed &a, &b;
  int64_t offset;
  bool valid;  // lanes without a pixel take part in the sums over lanes
  float a_norm, a_scale, b_norm, b_scale;

  LTX_DEVICE float sum(float value) const {
    for (int bits = f.lanes / 2; bits > 0; bits /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, bits);
    return value;
  }

  // Calls body(channel, a, b).
  template <class Body>
  LTX_DEVICE void each(Body&& body) const {
    if (!valid) return;
    for (int c = static_cast<int>(threadIdx.x) % f.lanes * V; c < f.channels; c += f.lanes * V) {
      body(c, a.read<V>(offset + c), b.read<V>(offset + c));
    }
  }

  LTX_DEVICE Pixel(const Features& f, const Mixed& a, const Mixed& b, int64_t index, bool valid)
      : f(f), a(a), b(b), offset(index * f.channels), valid(valid) {
    float squares_a = 0.0f, squares_b = 0.0f;
    each([&](int, const Floats<V>& xa, const Floats<V>& xb) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        squares_a += xa[j] * xa[j];
        squares_b += xb[j] * xb[j];
      }
    });
    a_norm = sqrtf(sum(squares_a));
    b_norm = sqrtf(sum(squares_b));
    a_scale = 1.0f / (a_norm + kEps);
    b_scale = 1.0f / (b_norm + kEps);
  }

  // Rounded so that equal features differ by exactly zero: a fused multiply-add would round one product only.
  LTX_DEVICE float difference(float xa, float xb) const {
    return __fadd_rn(__fmul_rn(xa, a_scale), -__fmul_rn(xb, b_scale));
  }
};

// sums (samples, pieces).
template <int V>
__global__ void __launch_bounds__(kThreads) distances(Features f, Mixed a, Mixed b, const float* w, float* sums) {
  const int64_t sample = blockIdx.x / f.pieces, first = blockIdx.x % f.pieces * f.piece;
  const int64_t count = min(f.piece, f.positions - first);
  const int groups = kThreads / f.lanes, group = threadIdx.x / f.lanes;
  float total = 0.0f;
  for (int64_t start = 0; start < count; start += groups) {
    const Pixel<V> pixel(f, a, b, sample * f.positions + first + start + group, start + group < count);
    pixel.each([&](int c, const Floats<V>& xa, const Floats<V>& xb) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float d = pixel.difference(xa[j], xb[j]);
        total += w[c + j] * d * d;
      }
    });
  }
  total = block_reduce(total);
  if (threadIdx.x == 0) sums[blockIdx.x] = total / static_cast<float>(f.positions);
}

// da, db: with g the gradient at a scaled pixel, scale (g - x (g . x) scale / |x|). Either may be left out. Five blocks
// an SM: left alone, ptxas spills to make room for eight.
template <int V>
__global__ void __launch_bounds__(kThreads, 5)
    distance_gradients(Features f, Mixed a, Mixed b, const float* w, const float* dy, Mixed da, Mixed db) {
  const int64_t pixels = f.samples * f.positions, step = static_cast<int64_t>(gridDim.x) * kThreads / f.lanes;
  const int64_t group = strided_begin() / f.lanes;
  for (int64_t start = 0; start < pixels; start += step) {
    const int64_t index = start + group;
    const Pixel<V> pixel(f, a, b, index, index < pixels);
    const float d = pixel.valid ? 2.0f * dy[index / f.positions] / static_cast<float>(f.positions) : 0.0f;
    float along_a = 0.0f, along_b = 0.0f;
    pixel.each([&](int c, const Floats<V>& xa, const Floats<V>& xb) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float g = d * w[c + j] * pixel.difference(xa[j], xb[j]);
        along_a += g * xa[j];
        along_b -= g * xb[j];
      }
    });
    const float share_a = pixel.sum(along_a) * pixel.a_scale / (pixel.a_norm > 0 ? pixel.a_norm : 1.0f);
    const float share_b = pixel.sum(along_b) * pixel.b_scale / (pixel.b_norm > 0 ? pixel.b_norm : 1.0f);
    pixel.each([&](int c, const Floats<V>& xa, const Floats<V>& xb) {
      Floats<V> to_a, to_b;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float g = d * w[c + j] * pixel.difference(xa[j], xb[j]);
        to_a[j] = pixel.a_scale * (g - share_a * xa[j]);
        to_b[j] = pixel.b_scale * (-g - share_b * xb[j]);
      }
      if (da.data) da.write(pixel.offset + c, to_a);
      if (db.data) db.write(pixel.offset + c, to_b);
    });
  }
}

Mixed mixed(Operand x) { return x ? array_of<Mixed>(x) : Mixed{}; }

}  // namespace

void lpips_distance(const Call& call) {
  const Operand a = call[0], b = call[1], y = call[3];
  const Features f({a, b}, y);
  if (!f.positions) return clear(context(call), y.data<void>(), static_cast<size_t>(y.size()) * sizeof(float));
  const int64_t blocks = f.samples * f.pieces;
  float* sums = scratch<float>(call, 0, blocks);
  dispatch(f.width == kWidth, [&](auto whole) {
    constexpr int V = whole ? kWidth : 1;
    LTX_LAUNCH(call, distances<V>, static_cast<uint32_t>(blocks), kThreads, 0, f, mixed(a), mixed(b),
               call[2].data<const float>(), sums);
  });
  sum_columns(call, static_cast<const float*>(sums), blocks, f.pieces, 1, y.data<float>());
}

void lpips_distance_backward(const Call& call) {
  const Operand a = call[0], b = call[1], dy = call[3], da = call[4], db = call[5];
  const Features f({a, b, da, db}, dy);
  if (!f.positions) return;
  dispatch(f.width == kWidth, [&](auto whole) {
    constexpr int V = whole ? kWidth : 1;
    LTX_LAUNCH(call, distance_gradients<V>, grid_for(f.samples * f.positions * f.lanes), kThreads, 0, f, mixed(a),
               mixed(b), call[2].data<const float>(), dy.data<const float>(), mixed(da), mixed(db));
  });
}

}  // namespace ltx::cuda
