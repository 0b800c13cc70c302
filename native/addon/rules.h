// Whether a call fits its op: the check before every launch, made from rules.def.
#pragma once
#include <string>
#include <vector>

#include "../runtime/backend.h"

namespace ltx {

// Why these can't be the operands and scalars of an op, or nothing. They are as many as ops.def says; an operand that
// is left out has dims < 0.
std::string mismatch(int op, const std::vector<LtxTensor>& tensors, const double* scalars);

}  // namespace ltx
