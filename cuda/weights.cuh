// Parameters in the dtype of the activations that they meet: bf16 copies of f32 ones are kept beside their storage,
// where tensor-core kernels read them and Adam writes them; one that is stored in bf16 needs none.
#pragma once
#include "common.cuh"

namespace ltx::cuda {

// A parameter (same layout) in T. Where that is its own dtype it is read where it lies; the bf16 copy of an f32 one is
// brought up to date if it is not; an f32 copy of a bf16 one, or a copy of a tensor that is no parameter, is made in
// scratch slot 7.
template <class T>
const T* weights(const Call& call, Operand weight);
template <>
const float* weights(const Call& call, Operand weight);
template <>
const bf16* weights(const Call& call, Operand weight);

// For a kernel that writes a parameter: where its copy lies (NULL when there is none yet); the kernel writes that too,
// and from now on it counts as up to date.
bf16* copy_to_write(Operand parameter);

// LtxBackend's functions of the same names.
void free_cache(void* context, void* state);
void refresh(void* context, const LtxTensor* parameter);

}  // namespace ltx::cuda
