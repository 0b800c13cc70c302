// bf16 copies of f32 parameters, kept beside their storage: tensor-core kernels read them, Adam writes them.
#pragma once
#include "common.cuh"

namespace ltx::cuda {

// The bf16 copy of a parameter (same layout), brought up to date if it is not. Of a tensor that is no parameter: a copy
// in scratch slot 7.
const bf16* bf16_copy(const Call& call, Operand weight);

// For a kernel that writes a parameter: where its copy lies (NULL when there is none yet); the kernel writes that too,
// and from now on it counts as up to date.
bf16* copy_to_write(Operand parameter);

// LtxBackend's functions of the same names.
void free_cache(void* context, void* state);
void refresh(void* context, const LtxTensor* parameter);

}  // namespace ltx::cuda
