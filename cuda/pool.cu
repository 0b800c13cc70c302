// Max pooling, windows of 2 x 2 pixels side by side.
#include "columns.cuh"
#include "common.cuh"

namespace ltx::cuda {
namespace {

struct Pool {
  int64_t images, height, width, channels;  // of x; y is (images, height / 2, width / 2, channels)

  explicit Pool(Operand x) : images(x.dim(0) * x.dim(1)), height(x.dim(2)), width(x.dim(3)), channels(x.dim(4)) {}
  // Elements of x and y: a window's first pixel, the output pixel.
  LTX_HD int64_t window(int64_t image, int64_t row, int64_t column) const {
    return ((image * height + 2 * row) * width + 2 * column) * channels;
  }
  LTX_HD int64_t pixel(int64_t image, int64_t row, int64_t column) const {
    return ((image * (height / 2) + row) * (width / 2) + column) * channels;
  }
  LTX_HD int64_t corner(int i) const { return ((i >> 1) * width + (i & 1)) * channels; }
};

// Item i of (images, rows, columns, channels / V).
struct Item {
  int64_t image, row, column, channel;
  LTX_DEVICE Item(int64_t i, int64_t rows, int64_t columns, int64_t vectors, int width) {
    channel = i % vectors * width;
    i /= vectors;
    column = i % columns;
    i /= columns;
    row = i % rows;
    image = i / rows;
  }
};

// The later value is taken where it is greater, or not a number.
LTX_DEVICE bool replaces(float later, float best) { return later > best || later != later; }

template <class T, int V>
__global__ void __launch_bounds__(kThreads) pool_windows(Pool pool, const T* x, T* y) {
  const int64_t rows = pool.height / 2, columns = pool.width / 2, vectors = pool.channels / V;
  const int64_t count = pool.images * rows * columns * vectors;
  for (int64_t i = strided_begin(); i < count; i += strided_step()) {
    const Item at(i, rows, columns, vectors, V);
    const T* const from = x + pool.window(at.image, at.row, at.column) + at.channel;
    Floats<V> best = load<V>(from);
#pragma unroll
    for (int k = 1; k < 4; ++k) {
      const Floats<V> later = load<V>(from + pool.corner(k));
#pragma unroll
      for (int j = 0; j < V; ++j) best[j] = replaces(later[j], best[j]) ? later[j] : best[j];
    }
    store(y + pool.pixel(at.image, at.row, at.column) + at.channel, best);
  }
}

// A thread writes all pixels of its window; those of an odd last row and column are in none and get zeros.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) unpool_windows(Pool pool, const T* x, const T* dy, T* dx) {
  const int64_t rows = (pool.height + 1) / 2, columns = (pool.width + 1) / 2, vectors = pool.channels / V;
  const int64_t count = pool.images * rows * columns * vectors;
  for (int64_t i = strided_begin(); i < count; i += strided_step()) {
    const Item at(i, rows, columns, vectors, V);
    const int64_t first = pool.window(at.image, at.row, at.column) + at.channel;
    const bool below = 2 * at.row + 1 < pool.height, right = 2 * at.column + 1 < pool.width;
    Floats<V> d{}, best{};
    int winner[V];
    if (below && right) {
      d = load<V>(dy + pool.pixel(at.image, at.row, at.column) + at.channel);
      best = load<V>(x + first);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) winner[j] = 0;
#pragma unroll
    for (int k = 1; k < 4; ++k) {
      if (!below || !right) continue;
      const Floats<V> later = load<V>(x + first + pool.corner(k));
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const bool better = replaces(later[j], best[j]);
        best[j] = better ? later[j] : best[j];
        winner[j] = better ? k : winner[j];
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if ((k / 2 && !below) || (k % 2 && !right)) continue;
      Floats<V> out;
#pragma unroll
      for (int j = 0; j < V; ++j) out[j] = winner[j] == k ? d[j] : 0.0f;
      store(dx + first + pool.corner(k), out);
    }
  }
}

}  // namespace

void max_pool2d(const Call& call) {
  const Operand x = call[0], y = call[1];
  const Pool pool(x);
  dispatch(x, [&](auto tag) {
    using T = decltype(tag);
    dispatch_width<T>(pool.channels, {x.data<void>(), y.data<void>()}, [&](auto width) {
      constexpr int V = decltype(width)::value;
      LTX_LAUNCH(call, (pool_windows<T, V>), grid_for(y.size() / V), kThreads, 0, pool, x.data<T>(), y.data<T>());
    });
  });
}

void max_pool2d_backward(const Call& call) {
  const Operand x = call[0], dy = call[1], dx = call[2];
  const Pool pool(x);
  const int64_t windows = pool.images * ((pool.height + 1) / 2) * ((pool.width + 1) / 2);
  dispatch(x, [&](auto tag) {
    using T = decltype(tag);
    dispatch_width<T>(pool.channels, {x.data<void>(), dy.data<void>(), dx.data<void>()}, [&](auto width) {
      constexpr int V = decltype(width)::value;
      LTX_LAUNCH(call, (unpool_windows<T, V>), grid_for(windows * pool.channels / V), kThreads, 0, pool, x.data<T>(),
                 dy.data<T>(), dx.data<T>());
    });
  });
}

}  // namespace ltx::cuda
