// The 3D Haar transform and the L1 loss on it. A thread has the eight pixels of a 2 x 2 x 2 window, so the transform is
// three rounds of butterflies in registers. It is symmetric: its adjoint is the same butterflies. Coefficients carry a
// factor 1/sqrt(2) an axis, applied once at the end.
#include "columns.cuh"
#include "map.cuh"

namespace ltx::cuda {
namespace {

constexpr float kScale = 0.353553391f;  // 2^(-3/2)
constexpr int kWidth = 4;               // channels of a thread where they are a multiple of it

// The video (B, F, H, W, C) and the halved extents. Cells are the windows of all clips.
struct Video {
  int64_t clips, frames, height, width, channels;
  int64_t frames2 = (frames + 1) / 2, height2 = (height + 1) / 2, width2 = (width + 1) / 2;

  explicit Video(Operand x)
      : clips(x.dim(0)), frames(x.dim(1)), height(x.dim(2)), width(x.dim(3)), channels(x.dim(4)) {}
  LTX_HD int64_t clip_cells() const { return frames2 * height2 * width2; }
  LTX_HD int64_t cells() const { return clips * clip_cells(); }
};

// Pixel or band k = 4 time + 2 height + width.
struct Cell {
  int64_t clip, index;  // of the cell in its clip
  int64_t first;        // element of pixel 0
  int64_t frame, line, channels;
  bool later, below, right;  // whether pixels 4, 2 and 1 exist

  LTX_DEVICE Cell(const Video& v, int64_t cell) {
    clip = cell / v.clip_cells();
    index = cell - clip * v.clip_cells();
    const int64_t row = index / v.width2, w = 2 * (index - row * v.width2);
    const int64_t t = 2 * (row / v.height2), h = 2 * (row % v.height2);
    channels = v.channels;
    line = v.width * channels;
    frame = v.height * line;
    first = (clip * v.frames + t) * frame + h * line + w * channels;
    later = t + 1 < v.frames;
    below = h + 1 < v.height;
    right = w + 1 < v.width;
  }
  LTX_DEVICE bool exists(int k) const { return (!(k & 4) || later) && (!(k & 2) || below) && (!(k & 1) || right); }
  LTX_DEVICE int64_t pixel(int k) const { return first + (k >> 2) * frame + (k >> 1 & 1) * line + (k & 1) * channels; }
  LTX_DEVICE int64_t band(const Video& v, int k) const { return ((clip * 8 + k) * v.clip_cells() + index) * channels; }
};

template <int V>
using Window = Floats<V>[8];

// Sums and differences of neighbours along each axis, in place.
template <int V>
LTX_DEVICE void butterflies(Window<V>& window) {
#pragma unroll
  for (const int bit : {2, 4, 1}) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      if (k & bit) continue;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float a = window[k][j], b = window[k | bit][j];
        window[k][j] = a + b;
        window[k | bit][j] = a - b;
      }
    }
  }
}

// The transform of a - b but for the factor; zeros beyond the edges.
template <int V>
LTX_DEVICE void transform_difference(const Cell& cell, int64_t channel, const Mixed& a, const Mixed& b,
                                     Window<V>& window) {
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    window[k] = {};
    if (!cell.exists(k)) continue;
    const Floats<V> left = a.read<V>(cell.pixel(k) + channel), right = b.read<V>(cell.pixel(k) + channel);
#pragma unroll
    for (int j = 0; j < V; ++j) window[k][j] = left[j] - right[j];
  }
  butterflies<V>(window);
}

template <int V>
LTX_DEVICE Floats<V> scaled(const Floats<V>& values, float factor) {
  Floats<V> result;
#pragma unroll
  for (int j = 0; j < V; ++j) result[j] = values[j] * factor;
  return result;
}

// x (B, F, H, W, C) -> y (B, 8, F2, H2, W2, C).
template <int V>
__global__ void __launch_bounds__(kThreads) transform(Video video, Mixed x, Mixed y) {
  const int64_t vectors = video.channels / V, count = video.cells() * vectors;
  for (int64_t i = strided_begin(); i < count; i += strided_step()) {
    const Cell cell(video, i / vectors);
    const int64_t channel = i % vectors * V;
    Window<V> window;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      window[k] = {};
      if (cell.exists(k)) window[k] = x.read<V>(cell.pixel(k) + channel);
    }
    butterflies<V>(window);
#pragma unroll
    for (int k = 0; k < 8; ++k) y.write(cell.band(video, k) + channel, scaled(window[k], kScale));
  }
}

// dy (B, 8, F2, H2, W2, C) -> dx (B, F, H, W, C).
template <int V>
__global__ void __launch_bounds__(kThreads) transform_back(Video video, Mixed dy, Mixed dx) {
  const int64_t vectors = video.channels / V, count = video.cells() * vectors;
  for (int64_t i = strided_begin(); i < count; i += strided_step()) {
    const Cell cell(video, i / vectors);
    const int64_t channel = i % vectors * V;
    Window<V> window;
#pragma unroll
    for (int k = 0; k < 8; ++k) window[k] = dy.read<V>(cell.band(video, k) + channel);
    butterflies<V>(window);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      if (cell.exists(k)) dx.write(cell.pixel(k) + channel, scaled(window[k], kScale));
    }
  }
}

// What a cell adds to the loss of its clip, a row of sum_columns.
template <int V>
struct Magnitudes {
  Video video;
  Mixed a, b;
  float factor;
  struct State {};
  LTX_DEVICE State enter(int64_t, int64_t) const { return {}; }
  LTX_DEVICE void operator()(int64_t cell, int64_t channel, State, Floats<V> (&sums)[1]) const {
    Window<V> window;
    transform_difference<V>(Cell(video, cell), channel, a, b, window);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < 8; ++k) sum += fabsf(window[k][j]);
      sums[0][j] += sum * factor;
    }
  }
};

// da: the signs of the transformed difference, times dy (B, C), transformed back.
template <int V>
__global__ void __launch_bounds__(kThreads)
    magnitude_gradient(Video video, Mixed a, Mixed b, const float* dy, float factor, Mixed da) {
  const int64_t vectors = video.channels / V, count = video.cells() * vectors;
  for (int64_t i = strided_begin(); i < count; i += strided_step()) {
    const Cell cell(video, i / vectors);
    const int64_t channel = i % vectors * V;
    Window<V> window;
    transform_difference<V>(cell, channel, a, b, window);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float d = dy[cell.clip * video.channels + channel + j] * factor;
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float sign = static_cast<float>((window[k][j] > 0) - (window[k][j] < 0));
        window[k][j] = sign * d;
      }
    }
    butterflies<V>(window);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      if (cell.exists(k)) da.write(cell.pixel(k) + channel, window[k]);
    }
  }
}

Mixed mixed(Operand x) { return array_of<Mixed>(x); }

// Calls body with the channels of a thread as an integral constant.
template <class Body>
void dispatch_channels(int64_t channels, std::initializer_list<Operand> operands, Body&& body) {
  const bool whole = channels % kWidth == 0 &&
                     std::all_of(operands.begin(), operands.end(), [](Operand x) { return fits(x, kWidth); });
  if (whole) {
    body(std::integral_constant<int, kWidth>{});
  } else {
    body(std::integral_constant<int, 1>{});
  }
}

// Of the mean over bands and cells of a clip.
float mean_factor(const Video& video) {
  return kScale / (8.0f * static_cast<float>(std::max<int64_t>(video.clip_cells(), 1)));
}

}  // namespace

void haar(const Call& call) {
  const Operand x = call[0], y = call[1];
  const Video video(x);
  dispatch_channels(video.channels, {x, y}, [&](auto width) {
    constexpr int V = decltype(width)::value;
    LTX_LAUNCH(call, transform<V>, grid_for(video.cells() * video.channels / V), kThreads, 0, video, mixed(x),
               mixed(y));
  });
}

void haar_backward(const Call& call) {
  const Operand dy = call[0], dx = call[1];
  const Video video(dx);
  dispatch_channels(video.channels, {dy, dx}, [&](auto width) {
    constexpr int V = decltype(width)::value;
    LTX_LAUNCH(call, transform_back<V>, grid_for(video.cells() * video.channels / V), kThreads, 0, video, mixed(dy),
               mixed(dx));
  });
}

void haar_l1(const Call& call) {
  const Operand a = call[0], b = call[1], y = call[2];
  const Video video(a);
  if (!a.size()) return clear(context(call), y.data<void>(), static_cast<size_t>(y.size()) * sizeof(float));
  dispatch_channels(video.channels, {a, b}, [&](auto width) {
    constexpr int V = decltype(width)::value;
    sum_columns<1, V>(call, video.cells(), video.clip_cells(), video.channels, y.data<float>(),
                      Magnitudes<V>{video, mixed(a), mixed(b), mean_factor(video)});
  });
}

void haar_l1_backward(const Call& call) {
  const Operand a = call[0], b = call[1], dy = call[2], da = call[3];
  const Video video(a);
  dispatch_channels(video.channels, {a, b, da}, [&](auto width) {
    constexpr int V = decltype(width)::value;
    LTX_LAUNCH(call, magnitude_gradient<V>, grid_for(video.cells() * video.channels / V), kThreads, 0, video, mixed(a),
               mixed(b), dy.data<const float>(), mean_factor(video), mixed(da));
  });
}

}  // namespace ltx::cuda
