// Convolutions and matrix products on tiles, for processors with AVX-512: operands are packed where they are used, so
// no copy of a weight is kept and padding is never copied.
#pragma once
#include <cstdlib>

#include "conv3d.h"

namespace ltx::cpu {

// What there is to multiply with: nothing, f32, bf16 pairs as well, or AMX (whose bf16 products make f32 ones, too).
// LTX_CPU_ISA=avx512 leaves AMX out.
enum class Tiles { kNone, kF32, kBf16, kAmx };
#if defined(__AVX512F__)
Tiles tiles();
#else
inline Tiles tiles() { return Tiles::kNone; }
#endif

// A layer's sizes and, for a convolution, which input row each output row sees under each tap.
struct Layer {
  int64_t rows;     // of y, over all entries of the batch
  int64_t in, out;  // channels
  int64_t taps = 1;
  const Shape* shape = nullptr;  // NULL: a plain product, where x and y have the same rows
};

// Three bf16 parts a number pay for themselves with enough rows.
inline bool f32_by_tiles(const Layer& layer) { return layer.rows >= 128 && layer.in >= 32 && layer.out >= 32; }

#if defined(__AVX512F__)
// y = act(x w^T + bias + residual), pre gets act's argument. w (out, taps, in); dtypes as in ops.def.
void tiled_forward(const Layer& layer, Operand x, Operand w, Operand bias, Operand residual, Operand y, Operand pre,
                   Unary act);
// dx (+)= dy w; dx may be f32 where dy is bf16.
void tiled_backward_input(const Layer& layer, Operand dy, Operand w, Operand dx, bool accumulate);
// dw = dy^T x, dbias = column sums of dy.
void tiled_backward_weight(const Layer& layer, Operand x, Operand dy, Operand dw, Operand dbias);
#else
inline void tiled_forward(const Layer&, Operand, Operand, Operand, Operand, Operand, Operand, Unary) { std::abort(); }
inline void tiled_backward_input(const Layer&, Operand, Operand, Operand, bool) { std::abort(); }
inline void tiled_backward_weight(const Layer&, Operand, Operand, Operand, Operand) { std::abort(); }
#endif

}  // namespace ltx::cpu
