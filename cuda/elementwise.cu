// Elementwise ops and broadcasts over rows.
#include <cmath>

#include "activation.cuh"
#include "map.cuh"

namespace ltx::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads) fill_elements(T* y, double value, int64_t count) {
  constexpr int N = kVector<T>;
  T element;
  if constexpr (std::is_same_v<T, bf16>) {
    element = bf16(static_cast<float>(value));
  } else {
    element = static_cast<T>(value);
  }
  Pack<T, N> pack;
#pragma unroll
  for (int j = 0; j < N; ++j) pack.v[j] = element;
  for (int64_t i = strided_begin() * N; i < count; i += strided_step() * N) {
    if (i + N <= count && reinterpret_cast<uintptr_t>(y) % 16 == 0) {
      *reinterpret_cast<Pack<T, N>*>(y + i) = pack;
    } else {
      for (int64_t j = i; j < count && j < i + N; ++j) y[j] = element;
    }
  }
}

struct Affine {
  float scale, shift;
  template <int N>
  LTX_DEVICE Floats<N> operator()(const Floats<N>& x) const {
    return for_each<N>([this](float v) { return v * scale + shift; }, x);
  }
};

struct Axpby {
  float alpha, beta;
  template <int N>
  LTX_DEVICE Floats<N> operator()(const Floats<N>& a, const Floats<N>& b) const {
    return for_each<N>([this](float u, float v) { return alpha * u + beta * v; }, a, b);
  }
};

struct Product {
  template <int N>
  LTX_DEVICE Floats<N> operator()(const Floats<N>& a, const Floats<N>& b) const {
    return for_each<N>([](float u, float v) { return u * v; }, a, b);
  }
};

struct Sum {
  template <int N>
  LTX_DEVICE Floats<N> operator()(const Floats<N>& a, const Floats<N>& b) const {
    return for_each<N>([](float u, float v) { return u + v; }, a, b);
  }
};

// sa a + sb b.
struct WeightedSum {
  template <int N>
  LTX_DEVICE Floats<N> operator()(const Floats<N>& a, const Floats<N>& sa, const Floats<N>& b,
                                  const Floats<N>& sb) const {
    return for_each<N>([](float u, float s, float v, float t) { return s * u + t * v; }, a, sa, b, sb);
  }
};
struct PlusWeighted {  // a + s b
  template <int N>
  LTX_DEVICE Floats<N> operator()(const Floats<N>& a, const Floats<N>& b, const Floats<N>& s) const {
    return for_each<N>([](float u, float v, float t) { return u + t * v; }, a, b, s);
  }
};

struct Activate {
  int kind;
  float lo, hi;
  explicit Activate(const Call& call)
      : kind(static_cast<int>(call.integer(0))),
        lo(static_cast<float>(call.scalar(1))),
        hi(static_cast<float>(call.scalar(2))) {}
  template <int N>
  LTX_DEVICE Floats<N> operator()(Floats<N> x) const {
    activate_any(kind, x, lo, hi);
    return x;
  }
};

struct ActivateBackward : Activate {
  using Activate::Activate;
  template <int N>
  LTX_DEVICE Floats<N> operator()(const Floats<N>& x, Floats<N> d) const {
    activate_any_backward(kind, x, d, lo, hi);
    return d;
  }
};

}  // namespace

void fill(const Call& call) {
  const Operand y = call[0];
  const double value = call.scalar(0);
  if (value == 0 && !std::signbit(value)) return clear(context(call), y.tensor->data, y.size() * bytes_of(y.dtype()));
  const auto set = [&](auto tag) {
    using T = decltype(tag);
    LTX_LAUNCH(call, (fill_elements<T>), grid_for(divide_up(y.size(), kVector<T>)), kThreads, 0, y.data<T>(), value,
               y.size());
  };
  switch (y.dtype()) {
    case LTX_F32:
      return set(float{});
    case LTX_BF16:
      return set(bf16{});
    case LTX_I32:
      return set(int32_t{});
    case LTX_U8:
      return set(uint8_t{});
  }
}

void cast(const Call& call) {
  const Operand x = call[0], y = call[1];
  const float scale = static_cast<float>(call.scalar(0)), shift = static_cast<float>(call.scalar(1));
  if (scale == 1.0f && shift == 0.0f) {
    map_to(call, y, Same{}, Each{x});
  } else {
    map_to(call, y, Affine{scale, shift}, Each{x});
  }
}

void axpby(const Call& call) {
  const Axpby f{static_cast<float>(call.scalar(0)), static_cast<float>(call.scalar(1))};
  map_to(call, call[2], f, Each{call[0]}, Each{call[1]});
}

void mul(const Call& call) {
  const Operand a = call[0], b = call[1], y = call[2];
  if (b.size() == 1) {
    map_to(call, y, Product{}, Each{a}, Stretched{b, Stretched::kForAll});
  } else {
    map_to(call, y, Product{}, Each{a}, Each{b});
  }
}

void unary(const Call& call) { map_to(call, call[1], Activate(call), Each{call[0]}); }

void unary_backward(const Call& call) { map_to(call, call[2], ActivateBackward(call), Each{call[0]}, Each{call[1]}); }

void add_rows(const Call& call) { map_to(call, call[2], Sum{}, Each{call[0]}, Repeated{call[1]}); }

void mix_rows(const Call& call) {
  const Operand a = call[0], b = call[1], sa = call[2], sb = call[3], y = call[4];
  if (!y.size()) return;
  const int64_t run = y.dims() ? y.size() / y.dim(0) : 1;
  if (!b) {
    if (!sa) return map_to(call, y, Same{}, Each{a});
    return map_to(call, y, Product{}, Each{a}, Stretched{sa, run});
  }
  if (sa && sb) return map_to(call, y, WeightedSum{}, Each{a}, Stretched{sa, run}, Each{b}, Stretched{sb, run});
  if (sa) return map_to(call, y, PlusWeighted{}, Each{b}, Each{a}, Stretched{sa, run});
  if (sb) return map_to(call, y, PlusWeighted{}, Each{a}, Each{b}, Stretched{sb, run});
  map_to(call, y, Sum{}, Each{a}, Each{b});
}

}  // namespace ltx::cuda
