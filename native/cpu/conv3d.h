// The geometry of a 3-D convolution, and its slow road.
#pragma once
#include "onednn.h"

namespace ltx::cpu {

struct Shape {
  int64_t batch, frames, height, width, in;        // x
  int64_t out_frames, out_height, out_width, out;  // y
  int64_t taps, kernel_h, kernel_w;
  int64_t stride_t, stride_h, stride_w, front, pad_h, pad_w;
  bool replicate;
  dnnl::memory::data_type type;

  int64_t weight_size() const { return out * taps * kernel_h * kernel_w * in; }
  int64_t frame_size() const { return height * width * in; }
  int64_t out_frame_size() const { return out_height * out_width * out; }
  bool is_matmul() const {
    return taps * kernel_h * kernel_w * stride_t * stride_h * stride_w == 1 && out_frames == frames &&
           out_height == height && out_width == width && !front && !pad_h && !pad_w;
  }

  dnnl::memory::desc activation(int64_t channels, int64_t d, int64_t h, int64_t w, dnnl::memory::data_type t) const {
    return {{batch, channels, d, h, w}, t, dnnl::memory::format_tag::ndhwc};
  }
  dnnl::memory::desc x() const { return activation(in, frames, height, width, type); }
  dnnl::memory::desc y(dnnl::memory::data_type t) const {
    return activation(out, out_frames, out_height, out_width, t);
  }
  dnnl::memory::desc any_weight(dnnl::memory::data_type t) const {
    return {{out, in, taps, kernel_h, kernel_w}, t, dnnl::memory::format_tag::any};
  }
  dnnl::memory::desc plain_weight(dnnl::memory::data_type t = dnnl::memory::data_type::f32) const {
    return {{out, in, taps, kernel_h, kernel_w}, t, dnnl::memory::format_tag::odhwi};
  }
  dnnl::memory::desc bias() const { return {{out}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::a}; }
  dnnl::memory::dims strides() const { return {stride_t, stride_h, stride_w}; }
  dnnl::memory::dims pad_begin() const { return {front, pad_h, pad_w}; }
  // What the last output position needs; negative where the input's end isn't reached.
  dnnl::memory::dims pad_end() const {
    return {(out_frames - 1) * stride_t + taps - frames - front,
            (out_height - 1) * stride_h + kernel_h - height - pad_h,
            (out_width - 1) * stride_w + kernel_w - width - pad_w};
  }
  Key key(int64_t kind, int64_t extra = 0) const {
    return {kind,       batch,
            frames,     height,
            width,      in,
            out_frames, out_height,
            out_width,  out,
            taps,       kernel_h,
            kernel_w,   stride_t,
            stride_h,   stride_w,
            front,      pad_h,
            pad_w,      static_cast<int64_t>(type),
            extra,      omp_get_max_threads()};
  }
};

// The same convolution as a matrix product over gathered patches (one row an output position, one column a weight): for
// shapes that oneDNN's convolutions get wrong. Takes memory for rows * columns elements.
// Layers of a few channels in f32, added up in double: norms of so few channels magnify what rounding leaves.
bool is_narrow(const Shape& s);
void narrow_conv3d(const Shape& s, Operand x, Operand w, Operand bias, Operand residual, Operand y);
void column_conv3d(const Shape& s, Operand x, Operand w, Operand bias, Operand residual, Operand y);
void column_conv3d_backward_input(const Shape& s, Operand dy, Operand w, Operand dx);
void column_conv3d_backward_weight(const Shape& s, Operand x, Operand dy, Operand dw, Operand dbias);

}  // namespace ltx::cpu
