// What kernels see of the emulator when g++ compiles them: CUDA's keywords, vector types and warp operations.
// The threads of a block are fibers on one operating system thread. Barriers and warp operations are where they change
// over; asynchronous copies land at the wait that covers them, not before; shared memory starts as NaN. What the
// hardware would leave undefined ends the process with a message that names the kernel and the thread.
#pragma once
#include <math.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) int2 {
  int32_t x, y;
};
struct alignas(16) int4 {
  int32_t x, y, z, w;
};
struct uint3 {
  uint32_t x, y, z;
};
struct dim3 {
  uint32_t x = 1, y = 1, z = 1;
  constexpr dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline int2 make_int2(int32_t x, int32_t y) { return {x, y}; }
inline int4 make_int4(int32_t x, int32_t y, int32_t z, int32_t w) { return {x, y, z, w}; }

namespace ltx::emulator {

// Where the running thread stands.
struct Position {
  uint3 thread{}, block{};
  dim3 block_size, grid_size;
  int lane = 0;
};
extern constinit thread_local Position position __attribute__((tls_model("initial-exec")));

// Runs body once for each thread of the grid, with blocks in parallel on a few operating system threads.
void launch(const char* kernel, dim3 grid, dim3 block, size_t dynamic_shared, const std::function<void()>& body);

void barrier();
// All lanes of mask meet at the operation; the last to come calls op with the arguments of the 32 lanes (null for those
// outside mask).
void meet(uint32_t mask, const char* name, void* argument, void (*op)(void** arguments));
void warp_barrier(uint32_t mask);
void* shared(const void* key, size_t bytes);
void* dynamic_shared();
void copy_async(void* shared, const void* global, int bytes, bool valid);
void copy_async_commit();
void copy_async_wait(int pending);
// For rows of 16 bytes: reads one, so that sanitizers see it, and ends the process when it is not aligned.
void read_row(const void* row, uint32_t (&words)[4]);
[[noreturn]] void fail(const char* message, const char* detail = "");

template <class T>
T exchange(uint32_t mask, const char* name, T value, int source) {
  struct Argument {
    T value, result;
    int source;
  } argument{value, value, source};
  meet(mask, name, &argument, [](void** all) {
    for (int lane = 0; lane < 32; ++lane) {
      auto* own = static_cast<Argument*>(all[lane]);
      if (!own || own->source == lane) continue;
      auto* other = static_cast<Argument*>(all[own->source]);
      if (!other) fail("a shuffle reads from a lane outside its mask");
      own->result = other->value;
    }
  });
  return argument.result;
}

}  // namespace ltx::emulator

#define threadIdx (::ltx::emulator::position.thread)
#define blockIdx (::ltx::emulator::position.block)
#define blockDim (::ltx::emulator::position.block_size)
#define gridDim (::ltx::emulator::position.grid_size)

// The array's address is looked up by the place of its declaration, once a thread.
#define LTX_SHARED(T, name, dimensions) \
  using name##_type = T dimensions;     \
  static const char name##_key = 0;     \
  name##_type& name = *static_cast<name##_type*>(::ltx::emulator::shared(&name##_key, sizeof(name##_type)))
#define LTX_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::ltx::emulator::dynamic_shared())

inline void __syncthreads() { ltx::emulator::barrier(); }
inline void __syncwarp(uint32_t mask = ~0u) { ltx::emulator::warp_barrier(mask); }
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
  const int lane = ltx::emulator::position.lane;
  return ltx::emulator::exchange(mask, "__shfl_sync", value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32) {
  const int lane = ltx::emulator::position.lane, other = lane ^ bits;
  return ltx::emulator::exchange(mask, "__shfl_xor_sync", value,
                                 other / width == lane / width || other < lane ? other : lane);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int distance, int width = 32) {
  const int lane = ltx::emulator::position.lane, other = lane + distance;
  return ltx::emulator::exchange(mask, "__shfl_down_sync", value, other / width == lane / width ? other : lane);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, int distance, int width = 32) {
  const int lane = ltx::emulator::position.lane, other = lane - distance;
  return ltx::emulator::exchange(mask, "__shfl_up_sync", value, other >= (lane & ~(width - 1)) ? other : lane);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  struct Argument {
    int predicate;
    uint32_t result;
  } argument{predicate, 0};
  ltx::emulator::meet(mask, "__ballot_sync", &argument, [](void** all) {
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane) {
      if (all[lane] && static_cast<Argument*>(all[lane])->predicate) votes |= 1u << lane;
    }
    for (int lane = 0; lane < 32; ++lane) {
      if (all[lane]) static_cast<Argument*>(all[lane])->result = votes;
    }
  });
  return argument.result;
}

inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
inline float __int_as_float(int32_t bits) { return std::bit_cast<float>(bits); }
inline int32_t __float_as_int(float value) { return std::bit_cast<int32_t>(value); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return 1.0f / std::sqrt(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline int __popc(uint32_t x) { return std::popcount(x); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>((uint64_t{a} * b) >> 32); }
template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

namespace ltx::cuda {

struct alignas(2) bf16 {
  uint16_t bits;
  bf16() = default;
  bf16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const bool nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
    bits = static_cast<uint16_t>(nan ? 0x7FFFu : (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};
inline uint32_t pack_bf16(float low, float high) {
  return uint32_t{bf16(low).bits} | static_cast<uint32_t>(bf16(high).bits) << 16;
}
inline float exp2_approx(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }

template <int kBytes = 16>
void cp_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::copy_async(shared, global, kBytes, valid);
}
inline void cp_async_commit() { emulator::copy_async_commit(); }
template <int kPending>
void cp_async_wait() {
  emulator::copy_async_wait(kPending);
}
void ldmatrix(uint32_t (&r)[4], const void* row);
void ldmatrix_transposed(uint32_t (&r)[4], const void* row);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

}  // namespace ltx::cuda
