// Matrix products with a parameter, shared by linear and by convolutions of one point.
#pragma once
#include "common.h"

namespace ltx::cpu {

// Operands are seen as matrices: rows are all dimensions but the last.
// y = act(x w^T + bias + residual); pre, if there, gets the argument of act.
void matmul_forward(Operand x, Operand w, Operand bias, Operand residual, Operand y, Operand pre, Unary act);
// dx = dy w, or dx += dy w; dx may be f32 where dy is bf16
void matmul_backward_input(Operand dy, Operand w, Operand dx, bool accumulate = false);
// dw = dy^T x, dbias = column sums of dy
void matmul_backward_weight(Operand x, Operand dy, Operand dw, Operand dbias);
// dbias = column sums of dy; one left out: does nothing.
void bias_gradient(Operand dy, Operand dbias);

// Fills an operand (one left out: does nothing) with zeros: the gradient of an empty batch.
void write_zeros(Operand out);

}  // namespace ltx::cpu
