// The one header that knows which compiler is at work: nvcc, for which the warp-level instructions are PTX here, or
// g++, for which emulator/emulator.h runs the same kernels on the host. Kernels use what both sides of this file
// define: no inline PTX, no __shared__, no <<<>>> anywhere else.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define LTX_HD __host__ __device__
#define LTX_DEVICE __device__ __forceinline__

// A static and the dynamic shared array of a block: LTX_SHARED(float, tile, [32][33]); LTX_DYNAMIC_SHARED(bf16, ring);
#define LTX_SHARED(T, name, dimensions) __shared__ __align__(16) T name dimensions
#define LTX_DYNAMIC_SHARED(T, name)                             \
  extern __shared__ __align__(16) unsigned char ltx_dynamic_[]; \
  T* const name = reinterpret_cast<T*>(ltx_dynamic_)

namespace ltx::cuda {

// bfloat16, rounded to nearest even. The intrinsics are single instructions from sm_80 on.
struct alignas(2) bf16 {
  uint16_t bits;
  bf16() = default;
  __device__ __forceinline__ bf16(float value) : bits(__bfloat16_as_ushort(__float2bfloat16_rn(value))) {}
  __device__ __forceinline__ operator float() const { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
};
// Two neighbours in one register, the first in the low half.
LTX_DEVICE uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// 2^x to 2 ulp, 0 where that is subnormal: one instruction, where exp2f has to look after the subnormals.
LTX_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

LTX_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies kBytes (4, 8 or 16, both sides aligned to them) from global to shared memory behind the thread's back; zeros
// instead when not valid (the address must still be one that may be formed, it is not read).
template <int kBytes = 16>
LTX_DEVICE void cp_async(void* shared, const void* global, bool valid = true) {
  const int read = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {  // .cg: through L2 only, the tile is not read again through L1
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global), "r"(read)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(read)
                 : "memory");
  }
}
LTX_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most kPending of this thread's committed groups are on the way. Other threads' need a barrier behind
// it.
template <int kPending>
LTX_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Loads four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8 (16 bytes,
// aligned). Lane l receives elements 2 (l % 4), +1 of row l / 4 of each.
LTX_DEVICE void ldmatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same with each matrix transposed: lane l receives elements of rows 2 (l % 4), +1 in column l / 4.
LTX_DEVICE void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// d (16 x 8, f32) += a (16 x 16, bf16) b (16 x 8, bf16). With g = lane / 4, c = 2 (lane % 4):
// a[i]: row g + 8 (i & 1), columns c + 8 (i >> 1), +1; b[i]: rows c + 8 i, +1, column g; d[i]: row g + 8 (i >> 1),
// column c + (i & 1).
LTX_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace ltx::cuda
#else
#include "emulator/emulator.h"
#define LTX_HD
#define LTX_DEVICE inline
#endif
