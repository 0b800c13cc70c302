// What every CPU kernel file uses: typed access to a call's operands, bf16, parallel loops, scratch memory.
// The files are compiled once per instruction set into libraries of their own, so everything here has internal linkage
// or hidden visibility.
#pragma once
#include <omp.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "../runtime/call.h"
#include "../runtime/enums.h"

namespace ltx::cpu {

// bfloat16 with round to nearest even.
struct bf16 {
  uint16_t bits;
  bf16() = default;
  bf16(float value) {
    uint32_t u;
    std::memcpy(&u, &value, 4);
    const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    bits = static_cast<uint16_t>((u & 0x7FFFFFFFu) > 0x7F800000u ? ((u >> 16) | 0x40u) : rounded);
  }
  // Without this GCC does not vectorise stores of floats.
  bf16& operator=(float value) {
    bits = bf16(value).bits;
    return *this;
  }
  operator float() const {
    const uint32_t u = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &u, 4);
    return value;
  }
};

struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Calls body with a value of the operand's element type: dispatch(x, [&](auto tag) { using T = decltype(tag); ... }).
template <class Body>
void dispatch(Operand operand, Body&& body) {
  switch (operand.dtype()) {
    case LTX_F32:
      return body(float{});
    case LTX_BF16:
      return body(bf16{});
    default:
      throw std::runtime_error("expected f32 or bf16, got dtype " + std::to_string(operand.dtype()));
  }
}
template <class Body>
void dispatch(Operand a, Operand b, Body&& body) {
  dispatch(a, [&](auto ta) { dispatch(b, [&](auto tb) { body(ta, tb); }); });
}

// Runs body(begin, end) over [0, n) on all threads in contiguous pieces that depend only on n and the thread count;
// inline when the work (n * cost, in roughly nanoseconds) is too small to share.
template <class Body>
void parallel(int64_t n, double cost, Body&& body) {
  const int threads = omp_get_max_threads();
  if (n <= 0) return;
  if (threads == 1 || n * cost < 20000) return body(int64_t{0}, n);
#pragma omp parallel num_threads(threads)
  {
    const int id = omp_get_thread_num(), count = omp_get_num_threads();
    const int64_t begin = n * id / count, end = n * (id + 1) / count;
    if (begin < end) body(begin, end);
  }
}

// Memory for std::free: in pages of 2 MiB where there is room for one, which are soon there and soon found. NULL when
// there is none.
void* allocate_pages(size_t bytes);

// Scratch memory of the worker thread, 64-byte aligned, kept between calls. Each slot (0..8) is a buffer of its own.
void* scratch(int slot, size_t bytes);
template <class T>
T* scratch(int slot, int64_t count) {
  return static_cast<T*>(scratch(slot, static_cast<size_t>(count) * sizeof(T)));
}

// Every kernel: void name(const Call&), throwing std::exception on failure.
#define LTX_OP(name, operands, scalars) void name(const Call& call);
#include "../runtime/ops.def"
#undef LTX_OP

}  // namespace ltx::cpu
