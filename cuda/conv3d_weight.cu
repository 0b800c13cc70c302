// The weight gradient of a 3-D convolution as a matrix product: dw (Co, taps Ci) = dyᵀ (Co, P) columns (P, taps Ci),
// where row p of `columns` is what output position p sees of x; it is gathered on the way into shared memory. P is long
// and dw small, so the positions are cut into splits that are summed apart and then added up in turn.
#include <algorithm>

#include "columns.cuh"
#include "conv3d.cuh"

namespace ltx::cuda {
namespace {

// A block computes kSide x kSide of dw, kDepth positions at a time, out of a ring of kStages pairs of tiles
// (kDepth, kSide) of dy and x: positions are rows as they are in memory.
template <class T, int kSide>
struct Tile;

// Per position a block reads 2 * 128 elements for 128 * 128 products: 64 FLOP a byte from L2, where sm_86 needs about
// 60 to keep its tensor cores busy. Two blocks an SM (48 KB each, at most 128 registers a thread) hide each other's
// barriers.
template <>
struct Tile<bf16, 128> {
  static constexpr int kDepth = 32, kStages = 3, kThreads = 256, kBlocks = 2;
  static constexpr int kWarpRows = 64, kWarpColumns = 32;
  static constexpr double kEfficiency = 0.8;
};
// For few channels, and where the larger leaves SMs without work.
template <>
struct Tile<bf16, 64> {
  static constexpr int kDepth = 32, kStages = 3, kThreads = 128, kBlocks = 4;
  static constexpr int kWarpRows = 32, kWarpColumns = 32;
  static constexpr double kEfficiency = 0.5;
};
template <>
struct Tile<float, 64> {
  static constexpr int kDepth = 16, kStages = 3, kThreads = 128, kBlocks = 4;
  static constexpr double kEfficiency = 0.1;
};

// Where the 16-byte piece of a row of a tile lies, in elements. ldmatrix reads one piece of eight rows at a time: they
// are turned against each other, so that they lie in different banks.
template <class T, int kSide>
LTX_DEVICE int piece_offset(int row, int piece) {
  if (sizeof(T) == 2) piece ^= row & 7;
  return row * kSide + piece * kVector<T>;
}

// What the threads of a block hold of the product.
template <class T, int kSide>
struct Product;

template <int kSide>
struct Product<bf16, kSide> {
  using Shape = Tile<bf16, kSide>;
  static constexpr int kRows = Shape::kWarpRows / 16, kColumns = Shape::kWarpColumns / 8;
  static constexpr int kWarpsAcross = kSide / Shape::kWarpColumns;
  float d[kRows][kColumns][4] = {};

  LTX_DEVICE static int first_row() { return threadIdx.x / kWarp / kWarpsAcross * Shape::kWarpRows; }
  LTX_DEVICE static int first_column() { return threadIdx.x / kWarp % kWarpsAcross * Shape::kWarpColumns; }

  // Both tiles have the summed positions as rows, so both come transposed: a matrix of ldmatrix is eight positions by
  // eight channels.
  LTX_DEVICE void add(const bf16* y, const bf16* x) {
    const int lane = threadIdx.x % kWarp, matrix = lane / 8;
#pragma unroll
    for (int depth = 0; depth < Shape::kDepth; depth += 16) {
      uint32_t a[kRows][4], b[kColumns / 2][4];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {  // a[1] is 8 channels on, a[2] 8 positions
        const int position = depth + matrix / 2 * 8 + lane % 8, channel = first_row() + i * 16 + matrix % 2 * 8;
        ldmatrix_transposed(a[i], y + piece_offset<bf16, kSide>(position, channel / 8));
      }
#pragma unroll
      for (int j = 0; j < kColumns / 2; ++j) {  // the other way round: b[0], b[1] are one tile of eight channels
        const int position = depth + matrix % 2 * 8 + lane % 8, channel = first_column() + j * 16 + matrix / 2 * 8;
        ldmatrix_transposed(b[j], x + piece_offset<bf16, kSide>(position, channel / 8));
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) mma_bf16(d[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

  // Calls body(row, column, value, value of the next column).
  template <class Body>
  LTX_DEVICE void each(Body&& body) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int row = first_row() + i * 16 + lane / 4, column = first_column() + j * 8 + lane % 4 * 2;
        body(row, column, d[i][j][0], d[i][j][1]);
        body(row + 8, column, d[i][j][2], d[i][j][3]);
      }
    }
  }
};

template <>
struct Product<float, 64> {
  static constexpr int kRows = 8, kColumns = 4;  // 12 values from shared memory for 32 products
  float d[kRows][kColumns] = {};

  LTX_DEVICE static int first_row() { return threadIdx.x / 16 * kRows; }
  LTX_DEVICE static int first_column() { return threadIdx.x % 16 * kColumns; }

  LTX_DEVICE void add(const float* y, const float* x) {
#pragma unroll
    for (int k = 0; k < Tile<float, 64>::kDepth; ++k) {
      const Floats<4> low = load<4>(y + k * 64 + first_row()), high = load<4>(y + k * 64 + first_row() + 4);
      const Floats<4> b = load<4>(x + k * 64 + first_column());
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) d[i][j] += (i < 4 ? low[i % 4] : high[i % 4]) * b[j];
      }
    }
  }

  template <class Body>
  LTX_DEVICE void each(Body&& body) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; j += 2) body(first_row() + i, first_column() + j, d[i][j], d[i][j + 1]);
    }
  }
};

// A number of output positions as the way between their corners, carried over at the ends of lines, frames and clips:
// a few additions where decoding the next position takes three divisions.
struct Stride {
  int clip, t, h, w;

  Stride(const Conv3d& s, int count) {
    w = count % s.out_width * s.stride_w;
    h = count / s.out_width % s.out_height * s.stride_h;
    const int64_t frames = count / (int64_t{s.out_width} * s.out_height);
    t = static_cast<int>(frames % s.out_frames) * s.stride_t;
    clip = static_cast<int>(frames / s.out_frames) * s.frames;
  }
  LTX_DEVICE void advance(const Conv3d& s, Corner& at) const {
    at.w += w;
    at.h += h;
    at.t += t;
    at.clip += clip;
    const int width = s.out_width * s.stride_w, height = s.out_height * s.stride_h, frames = s.out_frames * s.stride_t;
    if (at.w >= width - s.pad_w) {
      at.w -= width;
      at.h += s.stride_h;
    }
    if (at.h >= height - s.pad_h) {
      at.h -= height;
      at.t += s.stride_t;
    }
    if (at.t >= frames - s.front) {
      at.t -= frames;
      at.clip += s.frames;
    }
  }
};

// dy (P, Co) and x (pixels, Ci) have whole rows (see whole_rows); sums (splits, Co, taps, Ci) as they are in dw.
// Blocks: columns of dw, rows of dw, splits of `split` positions, a multiple of kDepth.
template <class T, int kSide>
__global__ void __launch_bounds__(Tile<T, kSide>::kThreads, Tile<T, kSide>::kBlocks)
    weight_gradient(Conv3d s, Stride stride, int split, const T* dy, const T* x, float* sums) {
  using Shape = Tile<T, kSide>;
  constexpr int kPieces = kSide / kVector<T>;             // of a row
  constexpr int kRowsAtOnce = Shape::kThreads / kPieces;  // what `stride` steps over
  constexpr int kTileElements = Shape::kDepth * kSide;
  LTX_DYNAMIC_SHARED(T, ring);  // (kStages, 2, kDepth, kSide)

  const int out = padded_channels<T>(s.out), in = padded_channels<T>(s.in), columns = s.taps() * in;
  const int first_row = blockIdx.y * kSide, first_column = blockIdx.x * kSide;
  const int begin = blockIdx.z * split, end = min(begin + split, s.out_positions());

  // A thread copies the same piece of every kRowsAtOnce-th row.
  const int piece = threadIdx.x % kPieces, row = threadIdx.x / kPieces;
  const int channel = first_row + piece * kVector<T>, column = first_column + piece * kVector<T>;
  const int tap = column / in;
  const int tap_w = tap % s.kernel_w, tap_h = tap / s.kernel_w % s.kernel_h, tap_t = tap / (s.kernel_w * s.kernel_h);
  const T* const channels = x + (column - tap * in);
  int position = begin + row;
  Corner at = corner(s, position);

  const auto copy_next = [&](int stage) {
    T* const y_tile = ring + stage * 2 * kTileElements;
#pragma unroll
    for (int i = 0; i < Shape::kDepth / kRowsAtOnce; ++i) {
      T* const to = y_tile + piece_offset<T, kSide>(row + i * kRowsAtOnce, piece);
      const bool some = position < end, some_y = some && channel < out;
      cp_async(to, some_y ? dy + static_cast<int64_t>(position) * out + channel : dy, some_y);
      const int pixel = input_position(s, at, tap_t, tap_h, tap_w);
      const bool some_x = some && column < columns && pixel >= 0;
      cp_async(to + kTileElements, some_x ? channels + static_cast<int64_t>(pixel) * in : x, some_x);
      position += kRowsAtOnce;
      stride.advance(s, at);
    }
  };

  const int steps = (end - begin + Shape::kDepth - 1) / Shape::kDepth;
#pragma unroll
  for (int stage = 0; stage + 1 < Shape::kStages; ++stage) {
    if (stage < steps) copy_next(stage);
    cp_async_commit();
  }
  Product<T, kSide> product;
  int stage = 0, next = Shape::kStages - 1;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<Shape::kStages - 2>();
    __syncthreads();  // the tiles are here, and nobody reads what is overwritten next
    if (step + Shape::kStages - 1 < steps) copy_next(next);
    cp_async_commit();
    const T* const y_tile = ring + stage * 2 * kTileElements;
    product.add(y_tile, y_tile + kTileElements);
    stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
    next = next + 1 == Shape::kStages ? 0 : next + 1;
  }

  sums += static_cast<int64_t>(blockIdx.z) * s.out * s.taps() * s.in;
  product.each([&](int r, int c, float first, float second) {
    r += first_row;
    c += first_column;
    if (r >= s.out || c >= columns) return;
    if (in == s.in) {  // and so even
      store(sums + static_cast<int64_t>(r) * columns + c, Floats<2>{first, second});
      return;
    }
    const int of = c / in, i = c - of * in;  // padded rows are even too: both are of one tap
    float* const to = sums + (static_cast<int64_t>(r) * s.taps() + of) * s.in + i;
    if (i < s.in) to[0] = first;
    if (i + 1 < s.in) to[1] = second;
  });
}

// How the positions are split, and how long that takes.
struct Plan {
  int64_t split, splits;
  double clocks;
};

// By the shape alone: the numbers are those of an A10, whatever the chip.
template <class T, int kSide>
Plan plan(int64_t rows, int64_t columns, int64_t positions) {
  using Shape = Tile<T, kSide>;
  constexpr double kSms = 72, kProducts = 512, kBytes = 350;  // SMs; an SM's products, the memory's bytes a clock
  constexpr int64_t kStart = 8;                               // steps that filling the ring and storing dw are worth
  constexpr double kStep = Shape::kBlocks * double{kSide} * kSide * Shape::kDepth / (kProducts * Shape::kEfficiency);
  constexpr int64_t kMostSplits = 1024, kMostSums = int64_t{1} << 25;
  const int64_t blocks = divide_up(rows, kSide) * divide_up(columns, kSide);
  const int64_t steps = divide_up(positions, Shape::kDepth);
  Plan best{0, 0, 0};
  for (int64_t splits = 1; splits <= std::min(steps, kMostSplits); ++splits) {
    if (splits > 1 && splits * rows * columns > kMostSums) break;
    const int64_t split = divide_up(steps, splits);
    const double waves = std::ceil(static_cast<double>(blocks * splits) / (kSms * Shape::kBlocks));
    double clocks = waves * static_cast<double>(split + kStart) * kStep;
    if (splits > 1) clocks += static_cast<double>(splits * rows * columns) * 8.0 / kBytes;
    if (best.splits && best.clocks <= clocks) continue;
    best = {split * Shape::kDepth, divide_up(steps, split), clocks};
  }
  return best;
}

template <class T, int kSide>
void run(const Call& call, const Conv3d& s, const Plan& plan, const T* dy, const T* x, float* dw) {
  using Shape = Tile<T, kSide>;
  const int64_t size = int64_t{s.out} * s.taps() * s.in;
  const int64_t columns = int64_t{s.taps()} * padded_channels<T>(s.in);
  float* sums = plan.splits == 1 ? dw : scratch<float>(call, 2, plan.splits * size);
  const dim3 grid(static_cast<uint32_t>(divide_up(columns, kSide)), static_cast<uint32_t>(divide_up(s.out, kSide)),
                  static_cast<uint32_t>(plan.splits));
  const Stride stride(s, Shape::kThreads / (kSide / kVector<T>));
  LTX_LAUNCH(call, (weight_gradient<T, kSide>), grid, Shape::kThreads,
             sizeof(T) * Shape::kStages * 2 * Shape::kDepth * kSide, s, stride, static_cast<int>(plan.split), dy, x,
             sums);
  if (plan.splits > 1) sum_columns(call, static_cast<const float*>(sums), plan.splits, plan.splits, size, dw);
}

bool is_product(const Conv3d& s) {
  return s.taps() * s.stride_t * s.stride_h * s.stride_w == 1 && s.positions() == s.out_positions() &&
         s.frames == s.out_frames && s.height == s.out_height && !s.front && !s.pad_h && !s.pad_w;
}

}  // namespace

void conv3d_backward_weight(const Call& call) {
  const Operand x = call[0], dy = call[1], dw = call[2], dbias = call[3];
  if (!x.size() || !dy.size()) {
    clear(context(call), dw.data<void>(), static_cast<size_t>(dw.size()) * sizeof(float));
    if (dbias) clear(context(call), dbias.data<void>(), static_cast<size_t>(dbias.size()) * sizeof(float));
    return;
  }
  const Conv3d s = conv3d_geometry(call, x, dy, dw);
  if (is_product(s)) return linear_backward_weight(call);
  dispatch(x, [&](auto tag) {
    using T = decltype(tag);
    const int in = padded_channels<T>(s.in), out = padded_channels<T>(s.out);
    const T* x_rows = whole_rows(call, 0, x.data<const T>(), s.positions(), s.in, in);
    const T* dy_rows = whole_rows(call, 1, dy.data<const T>(), s.out_positions(), s.out, out);
    const Plan small = plan<T, 64>(s.out, int64_t{s.taps()} * in, s.out_positions());
    bool done = false;
    if constexpr (sizeof(T) == 2) {
      const Plan large = plan<T, 128>(s.out, int64_t{s.taps()} * in, s.out_positions());
      done = large.clocks < small.clocks;
      if (done) run<T, 128>(call, s, large, dy_rows, x_rows, dw.data<float>());
    }
    if (!done) run<T, 64>(call, s, small, dy_rows, x_rows, dw.data<float>());
    if (dbias) sum_columns(call, dy.data<const T>(), dy.rows(), dy.rows(), dy.columns(), dbias.data<float>());
  });
}

}  // namespace ltx::cuda
