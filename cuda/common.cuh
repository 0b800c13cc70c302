// What every .cu file uses on the host's side: typed access to a call's operands, launches, scratch memory, grid sizes.
#pragma once
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "../native/runtime/call.h"
#include "../native/runtime/enums.h"
#include "context.h"
#include "device.cuh"
#include "launch.cuh"

namespace ltx::cuda {

inline Context& context(const ltx::Call& call) { return *static_cast<Context*>(call.raw->context); }

// Scratch memory of the device, see context.h.
template <class T>
T* scratch(const ltx::Call& call, int slot, int64_t count) {
  return static_cast<T*>(scratch(context(call), slot, static_cast<size_t>(count) * sizeof(T)));
}

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
// Calls body with std::true_type or std::false_type.
template <class Body>
void dispatch(bool flag, Body&& body) {
  if (flag) {
    body(std::true_type{});
  } else {
    body(std::false_type{});
  }
}

// Null for an operand that was left out.
template <class T>
T* data(Operand operand) {
  return operand ? operand.data<T>() : nullptr;
}

// Zeros, in the stream's order; nothing for an operand that was left out.
inline void clear(const ltx::Call& call, Operand operand) {
  if (!operand) return;
  const size_t bytes = operand.dtype() == LTX_BF16 ? 2 : operand.dtype() == LTX_U8 ? 1 : 4;
  clear(context(call), operand.data<void>(), static_cast<size_t>(operand.size()) * bytes);
}

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether every row of kWidth-element groups starts at a multiple of 16 bytes.
inline bool aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

constexpr int kThreads = 256;

// Blocks of kThreads for one thread an item, at most what a chip keeps busy several times over: kernels stride over the
// rest with strided_begin and strided_step.
inline dim3 grid_for(int64_t items, int threads = kThreads) {
  const int64_t blocks = divide_up(items, threads);
  return dim3(static_cast<uint32_t>(blocks < 65536 ? blocks : 65536));
}

// Every kernel: void name(const Call&), throwing std::runtime_error on failure.
#define LTX_OP(name, operands, scalars) void name(const Call& call);
#include "../native/runtime/ops.def"
#undef LTX_OP

}  // namespace ltx::cuda
