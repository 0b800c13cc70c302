// The functions of enums.h Unary on blocks of f32.
#pragma once
#include <cstdint>

namespace ltx::cpu {
// y = f(x); y may be x. lo and hi are the bounds of kClamp, lo is the slope of kLeakyRelu.
void unary_block(int kind, const float* x, float* y, int64_t n, float lo = 0, float hi = 0);
// dx = dy f'(x); dx may be x or dy.
void unary_grad_block(int kind, const float* x, const float* dy, float* dx, int64_t n, float lo = 0, float hi = 0);
}  // namespace ltx::cpu
