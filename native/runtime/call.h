// Typed access to the operands and scalars of a backend's call.
#pragma once
#include <cstdint>

#include "backend.h"

namespace ltx {

// One operand. Rows are all dimensions but the last.
struct Operand {
  const LtxTensor* tensor;
  explicit operator bool() const { return tensor->dims >= 0; }
  template <class T>
  T* data() const {
    return static_cast<T*>(tensor->data);
  }
  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < tensor->dims; ++i) n *= tensor->shape[i];
    return n;
  }
  int64_t dim(int i) const { return tensor->shape[i < 0 ? tensor->dims + i : i]; }
  int64_t columns() const { return tensor->dims ? tensor->shape[tensor->dims - 1] : 1; }
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < tensor->dims; ++i) n *= tensor->shape[i];
    return n;
  }
  int dims() const { return tensor->dims; }
  LtxDtype dtype() const { return static_cast<LtxDtype>(tensor->dtype); }
};

struct Call {
  const LtxCall* raw;
  Operand operator[](int i) const { return Operand{&raw->tensors[i]}; }
  double scalar(int i) const { return raw->scalars[i]; }
  int64_t integer(int i) const { return static_cast<int64_t>(raw->scalars[i]); }
  int count() const { return raw->tensor_count; }
};

}  // namespace ltx
