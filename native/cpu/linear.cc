#include "linear.h"

#include "products.h"
#include "weight_cache.h"

namespace ltx::cpu {
namespace {

using dnnl::algorithm;
using dnnl::memory;
using Type = memory::data_type;

// First words of the keys of this file's primitives and packed weights.
enum { kForward = 100, kBackwardInput, kBackwardWeight, kActivation };

memory::desc matrix(int64_t rows, int64_t columns, Type type) {
  return {{rows, columns}, type, memory::dims{columns, 1}};
}
memory::desc transposed(int64_t rows, int64_t columns, Type type) {
  return {{rows, columns}, type, memory::dims{1, rows}};
}

// oneDNN's name and alpha for an activation.
std::pair<algorithm, float> eltwise(Unary act) {
  switch (act) {
    case kSilu:
      return {algorithm::eltwise_swish, 1.f};
    case kGeluTanh:
      return {algorithm::eltwise_gelu_tanh, 0.f};
    case kGelu:
      return {algorithm::eltwise_gelu_erf, 0.f};
    case kSigmoid:
      return {algorithm::eltwise_logistic, 0.f};
    case kExp:
      return {algorithm::eltwise_exp, 0.f};
    case kSquare:
      return {algorithm::eltwise_square, 0.f};
    case kAbs:
      return {algorithm::eltwise_abs, 0.f};
    case kSqrt:
      return {algorithm::eltwise_sqrt, 0.f};
    case kRelu:
      return {algorithm::eltwise_relu, 0.f};
    case kTanh:
      return {algorithm::eltwise_tanh, 0.f};
    default:
      throw std::runtime_error("activation " + std::to_string(act) + " can't follow a matrix product");
  }
}

void activate(const void* pre, void* y, int64_t rows, int64_t columns, Type type, Unary act) {
  primitive_for({kActivation, rows, columns, static_cast<int64_t>(type), act, omp_get_max_threads()}, [&] {
    const auto [kind, alpha] = eltwise(act);
    const dnnl::eltwise_forward::desc desc(dnnl::prop_kind::forward_inference, kind, matrix(rows, columns, type),
                                           alpha);
    return dnnl::eltwise_forward::primitive_desc(desc, onednn_engine());
  }).run({{DNNL_ARG_SRC, pre}, {DNNL_ARG_DST, y}});
}

// oneDNN 2.6's bf16 products (AMX) crash or give wrong sums where 63 numbers are summed, and only there.
bool broken_in_bf16(Operand x, int64_t terms) { return x.dtype() == LTX_BF16 && terms == 63; }

// AMX multiplies faster than oneDNN uses it, and keeps no copies of weights.
bool uses_tiles(Operand x, const Layer& layer) {
  return tiles() == Tiles::kAmx && layer.in && (x.dtype() == LTX_BF16 || f32_by_tiles(layer));
}

// The weight of a product as oneDNN's (in, out) matrix. In the dtype of x it is read where it lies, which is as fast as
// a packed copy; f32 under bf16 needs a copy anyway and takes the layout that the primitive likes best.
memory::desc plain_weight(Operand w, bool transpose) {
  const int64_t out = w.dim(0), in = w.size() / out;
  const Type type = onednn_type(w.dtype());
  return transpose ? transposed(in, out, type) : matrix(out, in, type);
}

void run_product(Primitive& product, Operand w, const memory::desc& plain, int64_t kind, const void* src,
                 const void* bias, const void* residual, void* dst) {
  constexpr int kResidual = DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1;
  const memory::desc layout = product.layout(DNNL_ARG_WEIGHTS);
  if (layout == plain) {
    product.run({{DNNL_ARG_SRC, src},
                 {DNNL_ARG_WEIGHTS, w.data<void>()},
                 {DNNL_ARG_BIAS, bias},
                 {kResidual, residual},
                 {DNNL_ARG_DST, dst}});
    return;
  }
  const memory copy = packed_weight(w, {kind}, layout, [&](const memory& to) { reorder(plain, w.data<void>(), to); });
  product.run({{DNNL_ARG_SRC, src},
               {DNNL_ARG_WEIGHTS, copy},
               {DNNL_ARG_BIAS, bias},
               {kResidual, residual},
               {DNNL_ARG_DST, dst}});
}

}  // namespace

void write_zeros(Operand out) {
  if (!out || !out.size()) return;
  dispatch(out, [&](auto tag) { std::memset(out.data<void>(), 0, static_cast<size_t>(out.size()) * sizeof tag); });
}

void bias_gradient(Operand dy, Operand dbias) {
  if (!dbias) return;
  const LtxTensor operands[] = {*dy.tensor, *dbias.tensor};
  const LtxCall raw = {nullptr, operands, nullptr, 2, 0, nullptr, 0};
  sum_rows(Call{&raw});
}

void matmul_forward(Operand x, Operand w, Operand bias, Operand residual, Operand y, Operand pre, Unary act) {
  if (!y.size()) return;
  const Layer layer = {y.size() / y.columns(), x.columns(), y.columns()};
  if (uses_tiles(x, layer)) return tiled_forward(layer, x, w, bias, residual, y, pre, act);
  if (broken_in_bf16(x, x.columns()) || mixed(x, w)) {
    const LtxTensor operands[] = {*x.tensor, *w.tensor, *bias.tensor, *residual.tensor, *y.tensor, *pre.tensor};
    const double scalars[] = {static_cast<double>(act)};
    const LtxCall raw = {nullptr, operands, scalars, 6, 1, nullptr, 0};
    return run_in_f32(Call{&raw}, 4, [](const Call& c) {
      matmul_forward(c[0], c[1], c[2], c[3], c[4], c[5], static_cast<Unary>(c.integer(0)));
    });
  }
  const int64_t rows = layer.rows, in = layer.in, out = layer.out;
  const Type type = onednn_type(x.dtype());
  const Unary fused = pre ? kUnaryNone : act;
  const memory::desc plain = plain_weight(w, true);
  Primitive& product = primitive_for(
      {kForward, rows, in, out, static_cast<int64_t>(type), w.dtype(), static_cast<bool>(bias),
       static_cast<bool>(residual), fused, omp_get_max_threads()},
      [&] {
        dnnl::post_ops after;
        if (residual) after.append_binary(algorithm::binary_add, matrix(rows, out, type));
        if (fused != kUnaryNone) after.append_eltwise(1.f, eltwise(fused).first, eltwise(fused).second, 0.f);
        dnnl::primitive_attr attributes;
        attributes.set_post_ops(after);
        const bool as_it_lies = w.dtype() == x.dtype();
        const memory::desc weights = as_it_lies ? plain : memory::desc({in, out}, type, memory::format_tag::any);
        const auto desc = bias ? dnnl::matmul::desc(matrix(rows, in, type), weights, matrix(1, out, Type::f32),
                                                    matrix(rows, out, type))
                               : dnnl::matmul::desc(matrix(rows, in, type), weights, matrix(rows, out, type));
        return dnnl::matmul::primitive_desc(desc, attributes, onednn_engine());
      });
  run_product(product, w, plain, kForward, x.data<void>(), bias.tensor->data, residual.tensor->data,
              pre ? pre.data<void>() : y.data<void>());
  if (pre && act != kUnaryNone)
    activate(pre.data<void>(), y.data<void>(), rows, out, type, act);
  else if (pre)
    std::memcpy(y.data<void>(), pre.data<void>(), static_cast<size_t>(y.size()) * (type == Type::f32 ? 4 : 2));
}

void matmul_backward_input(Operand dy, Operand w, Operand dx, bool accumulate) {
  if (!dx.size() || !dy.size()) return accumulate ? void() : write_zeros(dx);
  const Layer layer = {dx.size() / dx.columns(), dx.columns(), dy.columns()};
  if (uses_tiles(dy, layer)) return tiled_backward_input(layer, dy, w, dx, accumulate);
  if (broken_in_bf16(dy, dy.columns()) || mixed(dy, w)) {
    const LtxTensor operands[] = {*dy.tensor, *w.tensor, *dx.tensor};
    const double scalars[] = {static_cast<double>(accumulate)};
    const LtxCall raw = {nullptr, operands, scalars, 3, 1, nullptr, 0};
    return run_in_f32(Call{&raw}, 2, [](const Call& c) { matmul_backward_input(c[0], c[1], c[2], c.integer(0) != 0); });
  }
  const int64_t rows = layer.rows, in = layer.in, out = layer.out;
  const Type type = onednn_type(dy.dtype()), target = onednn_type(dx.dtype());
  const memory::desc plain = plain_weight(w, false);
  Primitive& product = primitive_for(
      {kBackwardInput, rows, in, out, static_cast<int64_t>(type), w.dtype(), static_cast<int64_t>(target), accumulate,
       omp_get_max_threads()},
      [&] {
        dnnl::post_ops after;
        if (accumulate) after.append_sum();
        dnnl::primitive_attr attributes;
        attributes.set_post_ops(after);
        const bool as_it_lies = w.dtype() == dy.dtype();
        const memory::desc weights = as_it_lies ? plain : memory::desc({out, in}, type, memory::format_tag::any);
        const dnnl::matmul::desc desc(matrix(rows, out, type), weights, matrix(rows, in, target));
        return dnnl::matmul::primitive_desc(desc, attributes, onednn_engine());
      });
  run_product(product, w, plain, kBackwardInput, dy.data<void>(), nullptr, nullptr, dx.data<void>());
}

void matmul_backward_weight(Operand x, Operand dy, Operand dw, Operand dbias) {
  if (!x.size() || !dy.size()) {
    write_zeros(dw);
    return write_zeros(dbias);
  }
  const Layer layer = {x.size() / x.columns(), x.columns(), dy.columns()};
  if (uses_tiles(x, layer)) return tiled_backward_weight(layer, x, dy, dw, dbias);
  if (broken_in_bf16(x, x.rows())) {
    const LtxTensor operands[] = {*x.tensor, *dy.tensor, *dw.tensor, *dbias.tensor};
    const LtxCall raw = {nullptr, operands, nullptr, 4, 0, nullptr, 0};
    return run_in_f32(Call{&raw}, 2, [](const Call& c) { matmul_backward_weight(c[0], c[1], c[2], c[3]); });
  }
  const int64_t rows = layer.rows, in = layer.in, out = layer.out;
  const Type type = onednn_type(x.dtype());
  primitive_for({kBackwardWeight, rows, in, out, static_cast<int64_t>(type), omp_get_max_threads()}, [&] {
    const dnnl::matmul::desc desc(transposed(out, rows, type), matrix(rows, in, type), matrix(out, in, Type::f32));
    return dnnl::matmul::primitive_desc(desc, onednn_engine());
  }).run({{DNNL_ARG_SRC, dy.data<void>()}, {DNNL_ARG_WEIGHTS, x.data<void>()}, {DNNL_ARG_DST, dw.data<void>()}});
  bias_gradient(dy, dbias);
}

void linear(const Call& call) {
  if (ran_in_f32(call, call[0], 3, linear)) return;
  static const LtxTensor absent = {nullptr, {}, -1, LTX_F32, 0, nullptr, nullptr};
  matmul_forward(call[0], call[1], call[2], Operand{&absent}, call[3], call[4], static_cast<Unary>(call.integer(0)));
}

void linear_backward_input(const Call& call) {
  if (ran_in_f32(call, call[0], 2, linear_backward_input)) return;
  matmul_backward_input(call[0], call[1], call[2], call.integer(0) != 0);
}

void linear_backward_weight(const Call& call) {
  if (ran_in_f32(call, call[0], 2, linear_backward_weight)) return;
  matmul_backward_weight(call[0], call[1], call[2], call[3]);
}

}  // namespace ltx::cpu
