// 3-D convolution, channels last. The interior is one oneDNN convolution whose time padding is zeros. Where the first
// and the last frame are repeated instead, the repeated frames add a 2-D convolution of that one frame with the sum of
// the taps that fall outside: one small convolution an end, with the affected output frames stacked as output channels.
#include "conv3d.h"

#include <algorithm>

#include "linear.h"
#include "products.h"
#include "weight_cache.h"

namespace ltx::cpu {
namespace {

using dnnl::memory;
using Type = memory::data_type;

// First words of the keys of this file's primitives and packed weights.
enum { kForward = 200, kBackwardInput, kBackwardWeight };

// Scalars are those of ops.def.
Shape shape_of(const Call& call, Operand x, Operand y, const LtxTensor& w) {
  return {x.dim(0),
          x.dim(1),
          x.dim(2),
          x.dim(3),
          x.dim(4),
          y.dim(1),
          y.dim(2),
          y.dim(3),
          y.dim(4),
          w.shape[1],
          w.shape[2],
          w.shape[3],
          call.integer(0),
          call.integer(1),
          call.integer(2),
          call.integer(3),
          call.integer(5),
          call.integer(6),
          call.integer(7) == 1,
          onednn_type(x.dtype())};
}

// Along an axis: whether every output position sees some of the input, and whether every tap does.
struct Coverage {
  bool outputs = true, taps = true;
};
Coverage coverage(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t pad) {
  Coverage result;
  const auto inside = [&](int64_t o, int64_t k) { return o * stride + k >= pad && o * stride + k < pad + size; };
  for (int64_t o = 0; o < out_size && result.outputs; ++o) {
    // Neighbouring taps are one apart, so a window that misses has its ends on one side.
    result.outputs = o * stride + kernel > pad && o * stride < pad + size;
  }
  for (int64_t k = 0; k < kernel && result.taps; ++k) {
    result.taps = false;
    for (int64_t o = 0; o < out_size && !result.taps; ++o) result.taps = inside(o, k);
  }
  return result;
}

// oneDNN 2.6 gives wrong sums or writes out of bounds where an output position or a tap meets padding only. The frames
// of a causal convolution of one image are fine.
bool needs_columns(const Shape& s) {
  const Coverage t = coverage(s.frames, s.out_frames, s.taps, s.stride_t, s.front);
  const Coverage h = coverage(s.height, s.out_height, s.kernel_h, s.stride_h, s.pad_h);
  const Coverage w = coverage(s.width, s.out_width, s.kernel_w, s.stride_w, s.pad_w);
  if (!t.outputs || !h.outputs || !w.outputs || !h.taps || !w.taps) return true;
  return !t.taps && (s.stride_t != 1 || s.out_frames != 1);
}

// Few positions under many channels: a convolution then mostly moves (and packs) weights, which the plain product reads
// as they lie. The product's patches must stay small.
bool few_positions(const Shape& s, int64_t factor) {
  const int64_t rows = s.batch * s.out_frames * s.out_height * s.out_width;
  return s.in * s.out >= 4096 && rows <= factor * s.out &&
         rows * s.taps * s.kernel_h * s.kernel_w * s.in <= int64_t{1} << 25;
}

bool strided(const Shape& s) { return s.stride_t * s.stride_h * s.stride_w != 1; }

// oneDNN's strided bf16 sums (AMX) are wrong for some outputs of fewer than eight columns and for some odd channel
// counts.
bool uses_columns(const Shape& s) {
  return needs_columns(s) || few_positions(s, 2) ||
         (s.type == Type::bf16 && strided(s) && (s.out_width < 8 || s.in % 16 || s.out % 16));
}

// Its strided weight gradients are wrong, or written out of bounds, for some narrow shapes without padding as well.
// Patches are small then: a pixel is gathered taps / strides times. Its bf16 weight gradients are slower than the
// product for long.
bool weight_gradient_uses_columns(const Shape& s) {
  return needs_columns(s) || few_positions(s, s.type == Type::bf16 ? 12 : 2) || strided(s);
}

// One end of the video: the input frame that is repeated, and the output frames [first, first + count) that see it so.
struct End {
  int64_t frame, first, count;
  bool back;
};

// The taps of an output frame that fall on repeated frames of an end.
std::pair<int64_t, int64_t> outside_taps(const Shape& s, const End& end, int64_t output) {
  const int64_t start = output * s.stride_t - s.front;  // the input frame under the first tap
  if (end.back) return {std::clamp(s.frames - start, int64_t{0}, s.taps), s.taps};
  return {0, std::clamp(-start, int64_t{0}, s.taps)};
}

std::vector<End> repeated_ends(const Shape& s) {
  std::vector<End> ends;
  if (!s.replicate) return ends;
  const int64_t front = std::min(s.out_frames, (s.front + s.stride_t - 1) / s.stride_t);
  if (front > 0) ends.push_back({0, 0, front, false});
  int64_t first = s.out_frames;
  while (first > 0 && (first - 1) * s.stride_t - s.front + s.taps > s.frames) --first;
  if (first < s.out_frames) ends.push_back({s.frames - 1, first, s.out_frames - first, true});
  return ends;
}

// The 2-D convolution of an end: one frame in, one out, output frames stacked in front of the channels.
Shape stacked(const Shape& s, const End& end) {
  Shape flat = s;
  flat.frames = flat.out_frames = flat.taps = flat.stride_t = 1;
  flat.front = 0;
  flat.out = end.count * s.out;
  return flat;
}

dnnl::convolution_forward::primitive_desc forward_desc(const Shape& s, Type dst, bool bias) {
  const auto kind = dnnl::prop_kind::forward_inference;
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const auto weight = s.any_weight(s.type);
  const auto desc = bias ? dnnl::convolution_forward::desc(kind, algorithm, s.x(), weight, s.bias(), s.y(dst),
                                                           s.strides(), s.pad_begin(), s.pad_end())
                         : dnnl::convolution_forward::desc(kind, algorithm, s.x(), weight, s.y(dst), s.strides(),
                                                           s.pad_begin(), s.pad_end());
  return {desc, onednn_engine()};
}

Primitive& forward_primitive(const Shape& s, Type dst, bool bias) {
  return primitive_for(s.key(kForward, static_cast<int64_t>(dst) * 2 + bias),
                       [&] { return forward_desc(s, dst, bias); });
}

Primitive& backward_input_primitive(const Shape& s, Type dx) {
  return primitive_for(s.key(kBackwardInput, static_cast<int64_t>(dx)), [&] {
    const auto like = forward_desc(s, s.type, false);
    const dnnl::convolution_backward_data::desc desc(
        dnnl::algorithm::convolution_direct, s.activation(s.in, s.frames, s.height, s.width, dx), s.any_weight(s.type),
        s.y(s.type), s.strides(), s.pad_begin(), s.pad_end());
    return dnnl::convolution_backward_data::primitive_desc(desc, onednn_engine(), like);
  });
}

Primitive& backward_weight_primitive(const Shape& s) {
  return primitive_for(s.key(kBackwardWeight, 0), [&] {
    const auto like = forward_desc(s, s.type, false);
    const dnnl::convolution_backward_weights::desc desc(dnnl::algorithm::convolution_direct, s.x(),
                                                        s.any_weight(Type::f32), s.y(s.type), s.strides(),
                                                        s.pad_begin(), s.pad_end());
    return dnnl::convolution_backward_weights::primitive_desc(desc, onednn_engine(), like);
  });
}

memory whole_weight(Operand w, const Shape& s, const memory::desc& layout) {
  return packed_weight(w, {kForward}, layout,
                       [&](const memory& to) { reorder(s.plain_weight(onednn_type(w.dtype())), w.data<void>(), to); });
}

// For each output frame of an end the sum of its outside taps, (count, Co, kh, kw, Ci).
memory summed_weight(Operand w, const Shape& s, const End& end, const memory::desc& layout) {
  Key key = {kBackwardWeight, end.count};
  for (int64_t o = end.first; o < end.first + end.count; ++o) {
    const auto [first, last] = outside_taps(s, end, o);
    key.push_back(first);
    key.push_back(last);
  }
  return packed_weight(w, key, layout, [&](const memory& to) {
    const int64_t plane = s.kernel_h * s.kernel_w * s.in;
    float* sums = scratch<float>(7, end.count * s.out * plane);
    dispatch(w, [&](auto tag) {
      const auto* weight = w.data<const decltype(tag)>();
      parallel(end.count * s.out, 0.3 * static_cast<double>(plane * s.taps), [&](int64_t begin, int64_t stop) {
        for (int64_t row = begin; row < stop; ++row) {
          const auto [first, last] = outside_taps(s, end, end.first + row / s.out);
          const auto* from = weight + row % s.out * s.taps * plane;
          float* sum = sums + row * plane;
          std::fill_n(sum, plane, 0.f);
          for (int64_t k = first; k < last; ++k) {
            for (int64_t i = 0; i < plane; ++i) sum[i] += static_cast<float>(from[k * plane + i]);
          }
        }
      });
    });
    reorder(stacked(s, end).plain_weight(), sums, to);
  });
}

// The repeated frame of every batch entry, (B, H, W, Ci).
const void* gather_frame(const Shape& s, const End& end, const void* x) {
  const size_t bytes = static_cast<size_t>(s.frame_size()) * memory::data_type_size(s.type);
  const char* from = static_cast<const char*>(x) + static_cast<size_t>(end.frame) * bytes;
  if (s.batch == 1 || s.frames == 1) return from;
  char* frames = scratch<char>(5, s.batch * static_cast<int64_t>(bytes));
  parallel(s.batch, 0.1 * static_cast<double>(bytes), [&](int64_t begin, int64_t stop) {
    for (int64_t b = begin; b < stop; ++b) std::memcpy(frames + b * bytes, from + b * s.frames * bytes, bytes);
  });
  return frames;
}

// An end's output frames with the frame moved behind the position: (B, count, P, Co) of y -> (B, P, count, Co).
const void* gather_outputs(const Shape& s, const End& end, const void* dy) {
  const size_t bytes = static_cast<size_t>(s.out) * memory::data_type_size(s.type);
  const int64_t positions = s.out_height * s.out_width;
  const char* from = static_cast<const char*>(dy) + static_cast<size_t>(end.first * positions) * bytes;
  if (end.count == 1 && (s.batch == 1 || s.out_frames == 1)) return from;
  char* to = scratch<char>(6, s.batch * positions * end.count * static_cast<int64_t>(bytes));
  parallel(s.batch * positions, 0.1 * static_cast<double>(bytes * end.count), [&](int64_t begin, int64_t stop) {
    for (int64_t row = begin; row < stop; ++row) {
      const char* source = from + (row / positions * s.out_frames * positions + row % positions) * bytes;
      for (int64_t o = 0; o < end.count; ++o) {
        std::memcpy(to + (row * end.count + o) * bytes, source + o * positions * bytes, bytes);
      }
    }
  });
  return to;
}

// y's frames of an end += sums (B, P, count, Co).
template <class T>
void add_outputs(const Shape& s, const End& end, const float* sums, T* y) {
  const int64_t positions = s.out_height * s.out_width;
  parallel(s.batch * positions, 0.3 * static_cast<double>(s.out * end.count), [&](int64_t begin, int64_t stop) {
    for (int64_t row = begin; row < stop; ++row) {
      for (int64_t o = 0; o < end.count; ++o) {
        const float* sum = sums + (row * end.count + o) * s.out;
        T* to = y + ((row / positions * s.out_frames + end.first + o) * positions + row % positions) * s.out;
        for (int64_t c = 0; c < s.out; ++c) to[c] = static_cast<float>(to[c]) + sum[c];
      }
    }
  });
}

template <class T>
void add(const T* residual, T* y, int64_t count) {
  parallel(count, 0.3, [&](int64_t begin, int64_t stop) {
    for (int64_t i = begin; i < stop; ++i) y[i] = static_cast<float>(y[i]) + static_cast<float>(residual[i]);
  });
}

// x's repeated frame += sums (B, H, W, Ci).
template <class T>
void add_frame(const Shape& s, const End& end, const float* sums, T* x) {
  const int64_t size = s.frame_size(), line = s.width * s.in;
  parallel(s.batch * s.height, 0.3 * static_cast<double>(line), [&](int64_t begin, int64_t stop) {
    for (int64_t row = begin; row < stop; ++row) {
      T* to = x + (row / s.height * s.frames + end.frame) * size + row % s.height * line;
      for (int64_t i = 0; i < line; ++i) to[i] = static_cast<float>(to[i]) + sums[row * line + i];
    }
  });
}

// Each outside tap of dw += the gradient of the sum that it is part of.
void add_taps(const Shape& s, const End& end, const float* sums, float* dw) {
  const int64_t plane = s.kernel_h * s.kernel_w * s.in;
  parallel(s.out, 0.3 * static_cast<double>(plane * s.taps * end.count), [&](int64_t begin, int64_t stop) {
    for (int64_t c = begin; c < stop; ++c) {
      for (int64_t o = 0; o < end.count; ++o) {
        const auto [first, last] = outside_taps(s, end, end.first + o);
        const float* sum = sums + (o * s.out + c) * plane;
        for (int64_t k = first; k < last; ++k) {
          float* to = dw + (c * s.taps + k) * plane;
          for (int64_t i = 0; i < plane; ++i) to[i] += sum[i];
        }
      }
    }
  });
}

// dw in the parameter's own layout.
void run_backward_weight(const Shape& s, const void* x, const void* dy, float* dw) {
  Primitive& main = backward_weight_primitive(s);
  const memory::desc layout = main.layout(DNNL_ARG_DIFF_WEIGHTS);
  if (layout == s.plain_weight()) {
    main.run({{DNNL_ARG_SRC, x}, {DNNL_ARG_DIFF_DST, dy}, {DNNL_ARG_DIFF_WEIGHTS, dw}});
    return;
  }
  const memory blocked(layout, onednn_engine(), scratch(7, layout.get_size()));
  main.run({{DNNL_ARG_SRC, x}, {DNNL_ARG_DIFF_DST, dy}, {DNNL_ARG_DIFF_WEIGHTS, blocked}});
  reorder(blocked, s.plain_weight(), dw);
}

Layer layer_of(const Shape& s) {
  return {s.batch * s.out_frames * s.out_height * s.out_width, s.in, s.out, s.taps * s.kernel_h * s.kernel_w, &s};
}

// Whether tiles compute y and dx faster than oneDNN: measured, on AMX and without it. Where weights are few, patches
// cost tiles more than oneDNN's reorders; where positions are few, reading weights is all that counts.
bool uses_tiles(const Shape& s) {
  if (tiles() == Tiles::kNone) return false;
  if (tiles() != Tiles::kAmx) return s.type == Type::bf16 && onednn_has_bf16() && few_positions(s, 2);
  if (s.type == Type::f32) return f32_by_tiles(layer_of(s));
  return s.weight_size() > int64_t{1} << 19 || uses_columns(s) || strided(s);
}

bool weight_gradient_uses_tiles(const Shape& s) {
  return tiles() == Tiles::kAmx && (s.type == Type::bf16 || f32_by_tiles(layer_of(s)));
}

}  // namespace

void conv3d(const Call& call) {
  const Operand x = call[0], w = call[1], bias = call[2], residual = call[3], y = call[4];
  if (!y.size()) return;
  if (ran_in_f32(call, x, 4, conv3d)) return;
  const Shape s = shape_of(call, x, y, *w.tensor);
  static const LtxTensor absent = {nullptr, {}, -1, LTX_F32, 0, nullptr, nullptr};
  if (s.is_matmul()) return matmul_forward(x, w, bias, residual, y, Operand{&absent}, kUnaryNone);
  if (is_narrow(s) && !mixed(x, w)) return narrow_conv3d(s, x, w, bias, residual, y);
  if (uses_tiles(s)) return tiled_forward(layer_of(s), x, w, bias, residual, y, Operand{&absent}, kUnaryNone);
  if (mixed(x, w)) return run_in_f32(call, 4, conv3d);
  if (uses_columns(s)) return column_conv3d(s, x, w, bias, residual, y);
  Primitive& main = forward_primitive(s, s.type, static_cast<bool>(bias));
  main.run({{DNNL_ARG_SRC, x.data<void>()},
            {DNNL_ARG_WEIGHTS, whole_weight(w, s, main.layout(DNNL_ARG_WEIGHTS))},
            {DNNL_ARG_BIAS, bias.tensor->data},
            {DNNL_ARG_DST, y.data<void>()}});
  for (const End& end : repeated_ends(s)) {
    const Shape flat = stacked(s, end);
    Primitive& part = forward_primitive(flat, Type::f32, false);
    float* sums = scratch<float>(6, s.batch * flat.out_frame_size());
    part.run({{DNNL_ARG_SRC, gather_frame(s, end, x.data<void>())},
              {DNNL_ARG_WEIGHTS, summed_weight(w, s, end, part.layout(DNNL_ARG_WEIGHTS))},
              {DNNL_ARG_DST, sums}});
    dispatch(y, [&](auto tag) { add_outputs(s, end, sums, y.data<decltype(tag)>()); });
  }
  if (residual) dispatch(y, [&](auto tag) { add(residual.data<decltype(tag)>(), y.data<decltype(tag)>(), y.size()); });
}

void conv3d_backward_input(const Call& call) {
  const Operand dy = call[0], w = call[1], dx = call[2];
  if (!dx.size() || !dy.size()) return write_zeros(dx);
  if (ran_in_f32(call, dy, 2, conv3d_backward_input)) return;
  const Shape s = shape_of(call, dx, dy, *w.tensor);
  if (s.is_matmul()) return matmul_backward_input(dy, w, dx);
  if (uses_tiles(s)) return tiled_backward_input(layer_of(s), dy, w, dx, false);
  if (mixed(dy, w)) return run_in_f32(call, 2, conv3d_backward_input);
  // oneDNN's strided bf16 gradients (AMX) are wrong at any size, most where the strides differ.
  if (uses_columns(s) || (s.type == Type::bf16 && strided(s))) return column_conv3d_backward_input(s, dy, w, dx);
  Primitive& main = backward_input_primitive(s, s.type);
  main.run({{DNNL_ARG_DIFF_DST, dy.data<void>()},
            {DNNL_ARG_WEIGHTS, whole_weight(w, s, main.layout(DNNL_ARG_WEIGHTS))},
            {DNNL_ARG_DIFF_SRC, dx.data<void>()}});
  for (const End& end : repeated_ends(s)) {
    const Shape flat = stacked(s, end);
    Primitive& part = backward_input_primitive(flat, Type::f32);
    float* sums = scratch<float>(5, s.batch * s.frame_size());
    part.run({{DNNL_ARG_DIFF_DST, gather_outputs(s, end, dy.data<void>())},
              {DNNL_ARG_WEIGHTS, summed_weight(w, s, end, part.layout(DNNL_ARG_WEIGHTS))},
              {DNNL_ARG_DIFF_SRC, sums}});
    dispatch(dx, [&](auto tag) { add_frame(s, end, sums, dx.data<decltype(tag)>()); });
  }
}

void conv3d_backward_weight(const Call& call) {
  const Operand x = call[0], dy = call[1], dw = call[2], dbias = call[3];
  if (!x.size() || !dy.size()) {
    write_zeros(dw);
    return write_zeros(dbias);
  }
  if (ran_in_f32(call, x, 2, conv3d_backward_weight)) return;
  const Shape s = shape_of(call, x, dy, *dw.tensor);
  if (s.is_matmul()) return matmul_backward_weight(x, dy, dw, dbias);
  if (weight_gradient_uses_tiles(s)) return tiled_backward_weight(layer_of(s), x, dy, dw, dbias);
  if (weight_gradient_uses_columns(s)) return column_conv3d_backward_weight(s, x, dy, dw, dbias);
  run_backward_weight(s, x.data<void>(), dy.data<void>(), dw.data<float>());
  bias_gradient(dy, dbias);
  for (const End& end : repeated_ends(s)) {
    const Shape flat = stacked(s, end);
    float* sums = scratch<float>(4, flat.weight_size());
    run_backward_weight(flat, gather_frame(s, end, x.data<void>()), gather_outputs(s, end, dy.data<void>()), sums);
    add_taps(s, end, sums, dw.data<float>());
  }
}

}  // namespace ltx::cpu
