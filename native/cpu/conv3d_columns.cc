#include <algorithm>

#include "conv3d.h"
#include "linear.h"

namespace ltx::cpu {
namespace {

constexpr int64_t kNarrow = 8;

int64_t column_count(const Shape& s) { return s.taps * s.kernel_h * s.kernel_w * s.in; }

// Calls body(offset in the frames of a batch entry or -1 for a zero, column) for every pixel under an output position.
template <class Body>
void each_pixel(const Shape& s, int64_t position, Body&& body) {
  const int64_t left = position % s.out_width * s.stride_w - s.pad_w;
  const int64_t top = position / s.out_width % s.out_height * s.stride_h - s.pad_h;
  const int64_t start = position / (s.out_width * s.out_height) * s.stride_t - s.front;
  int64_t column = 0;
  for (int64_t k = 0; k < s.taps; ++k) {
    const int64_t frame = s.replicate ? std::clamp(start + k, int64_t{0}, s.frames - 1) : start + k;
    for (int64_t i = top; i < top + s.kernel_h; ++i) {
      for (int64_t j = left; j < left + s.kernel_w; ++j, column += s.in) {
        const bool inside = frame >= 0 && frame < s.frames && i >= 0 && i < s.height && j >= 0 && j < s.width;
        body(inside ? ((frame * s.height + i) * s.width + j) * s.in : -1, column);
      }
    }
  }
}

int64_t positions(const Shape& s) { return s.out_frames * s.out_height * s.out_width; }
int64_t entry_size(const Shape& s) { return s.frames * s.height * s.width * s.in; }

LtxTensor gather_columns(const Shape& s, Operand x) {
  const int64_t rows = s.batch * positions(s), columns = column_count(s);
  LtxTensor result = {nullptr, {rows, columns}, 2, x.dtype(), 0, nullptr, nullptr};
  dispatch(x, [&](auto tag) {
    using T = decltype(tag);
    T* to = scratch<T>(5, rows * columns);
    result.data = to;
    parallel(rows, 0.3 * static_cast<double>(columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* entry = x.data<T>() + row / positions(s) * entry_size(s);
        each_pixel(s, row % positions(s), [&](int64_t offset, int64_t column) {
          T* pixel = to + row * columns + column;
          if (offset < 0)
            std::memset(pixel, 0, static_cast<size_t>(s.in) * sizeof(T));
          else
            std::memcpy(pixel, entry + offset, static_cast<size_t>(s.in) * sizeof(T));
        });
      }
    });
  });
  return result;
}

}  // namespace

bool is_narrow(const Shape& s) { return s.type == dnnl::memory::data_type::f32 && s.in <= kNarrow && s.out <= kNarrow; }

void narrow_conv3d(const Shape& s, Operand x, Operand w, Operand bias, Operand residual, Operand y) {
  const int64_t rows = s.batch * positions(s), columns = column_count(s);
  const float* weights = w.data<const float>();
  const float* offsets = bias ? bias.data<const float>() : nullptr;
  const float* rest = residual ? residual.data<const float>() : nullptr;
  parallel(rows, static_cast<double>(columns * s.out), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* entry = x.data<const float>() + row / positions(s) * entry_size(s);
      double sums[kNarrow];
      for (int64_t o = 0; o < s.out; ++o) sums[o] = offsets ? offsets[o] : 0.0;
      each_pixel(s, row % positions(s), [&](int64_t offset, int64_t column) {
        if (offset < 0) return;
        for (int64_t c = 0; c < s.in; ++c) {
          const double value = entry[offset + c];
          for (int64_t o = 0; o < s.out; ++o) sums[o] += value * weights[o * columns + column + c];
        }
      });
      for (int64_t i = row * s.out, o = 0; o < s.out; ++o)
        y.data<float>()[i + o] = static_cast<float>(rest ? sums[o] + rest[i + o] : sums[o]);
    }
  });
}

void column_conv3d(const Shape& s, Operand x, Operand w, Operand bias, Operand residual, Operand y) {
  static const LtxTensor absent = {nullptr, {}, -1, LTX_F32, 0, nullptr, nullptr};
  const LtxTensor columns = gather_columns(s, x);
  matmul_forward(Operand{&columns}, w, bias, residual, y, Operand{&absent}, kUnaryNone);
}

void column_conv3d_backward_input(const Shape& s, Operand dy, Operand w, Operand dx) {
  const int64_t rows = s.batch * positions(s), columns = column_count(s);
  float* gradient = scratch<float>(5, rows * columns);
  const LtxTensor product = {gradient, {rows, columns}, 2, LTX_F32, 0, nullptr, nullptr};
  matmul_backward_input(dy, w, Operand{&product});
  // Entries of a batch share no pixel, so threads divide these.
  float* sums = scratch<float>(6, dx.size());
  parallel(s.batch, 0.5 * static_cast<double>(positions(s) * columns), [&](int64_t begin, int64_t end) {
    std::fill(sums + begin * entry_size(s), sums + end * entry_size(s), 0.f);
    for (int64_t row = begin * positions(s); row < end * positions(s); ++row) {
      float* entry = sums + row / positions(s) * entry_size(s);
      each_pixel(s, row % positions(s), [&](int64_t offset, int64_t column) {
        if (offset < 0) return;
        const float* from = gradient + row * columns + column;
        for (int64_t c = 0; c < s.in; ++c) entry[offset + c] += from[c];
      });
    }
  });
  dispatch(dx, [&](auto tag) {
    parallel(dx.size(), 0.3, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) dx.data<decltype(tag)>()[i] = sums[i];
    });
  });
}

void column_conv3d_backward_weight(const Shape& s, Operand x, Operand dy, Operand dw, Operand dbias) {
  const LtxTensor columns = gather_columns(s, x);
  matmul_backward_weight(Operand{&columns}, dy, dw, dbias);
}

}  // namespace ltx::cpu
