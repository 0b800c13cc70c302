// Passes over elements, y[i] = f(x[i]...): what an operand's element i is can differ (repeated, looked up, one for
// all), and so can the dtypes.
#pragma once
#include "common.cuh"
#include "divisor.cuh"

namespace ltx::cuda {

// --- arrays as kernels read and write them, N elements from element i on

template <class T>
struct Dense {
  T* data;
  template <int N>
  LTX_DEVICE Floats<N> read(int64_t i) const {
    return load<N>(data + i);
  }
  template <int N>
  LTX_DEVICE void write(int64_t i, const Floats<N>& values) const {
    store(data + i, values);
  }
};

// Of any dtype, for operands that differ. The branch is the same in all threads and costs nothing beside the memory.
struct Mixed {
  void* data;
  int dtype;
  template <int N, class T>
  LTX_DEVICE Floats<N> convert(int64_t i) const {
    const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(static_cast<const T*>(data) + i);
    Floats<N> values;
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = static_cast<float>(pack.v[j]);
    return values;
  }
  template <int N>
  LTX_DEVICE Floats<N> read(int64_t i) const {
    if (dtype == LTX_F32) return convert<N, float>(i);
    if (dtype == LTX_BF16) return convert<N, bf16>(i);
    if (dtype == LTX_I32) return convert<N, int32_t>(i);
    return convert<N, uint8_t>(i);
  }
  template <int N>
  LTX_DEVICE void write(int64_t i, const Floats<N>& values) const {
    if (dtype == LTX_F32) {
      store(static_cast<float*>(data) + i, values);
    } else {
      store(static_cast<bf16*>(data) + i, values);
    }
  }
};

inline size_t bytes_of(int dtype) { return dtype == LTX_U8 ? 1 : dtype == LTX_BF16 ? 2 : 4; }

// Whether n elements, a power of two, are one access.
inline bool fits(Operand x, int n) {
  return reinterpret_cast<uintptr_t>(x.tensor->data) % (n * bytes_of(x.dtype())) == 0;
}

template <class A>
A array_of(Operand x) {
  if constexpr (std::is_same_v<A, Mixed>) {
    return {x.tensor->data, x.dtype()};
  } else {
    return {static_cast<decltype(A::data)>(x.tensor->data)};
  }
}

// --- what stands at element i of an operand: a description on the host (whether it fits vectors of n elements; whether
// it can be read as an array of that dtype), from which a reader for the device is made

struct Each {
  Operand x;
  template <class A>
  struct Reader {
    A x;
    template <int N>
    LTX_DEVICE Floats<N> read(int64_t i) const {
      return x.template read<N>(i);
    }
  };
  bool fits(int n) const { return cuda::fits(x, n); }
  bool is(int dtype) const { return x.dtype() == dtype; }
  template <class A>
  Reader<A> reader() const {
    return {array_of<A>(x)};
  }
};

// x over and over.
struct Repeated {
  Operand x;
  template <class A>
  struct Reader {
    A x;
    Divisor period;
    template <int N>
    LTX_DEVICE Floats<N> read(int64_t i) const {
      return x.template read<N>(i % period);
    }
  };
  bool fits(int n) const { return cuda::fits(x, n) && x.size() % n == 0; }
  bool is(int dtype) const { return x.dtype() == dtype; }
  template <class A>
  Reader<A> reader() const {
    return {array_of<A>(x), Divisor(x.size())};
  }
};

// Element i / run of x, whatever its dtype.
struct Stretched {
  static constexpr int64_t kForAll = int64_t{1} << 62;  // the run of one element for all
  Operand x;
  int64_t run;
  template <class A>
  struct Reader {
    Mixed x;
    Divisor run;
    template <int N>
    LTX_DEVICE Floats<N> read(int64_t i) const {
      const float value = x.read<1>(i / run)[0];
      Floats<N> values;
#pragma unroll
      for (int j = 0; j < N; ++j) values[j] = value;
      return values;
    }
  };
  bool fits(int n) const { return run % n == 0; }
  bool is(int) const { return true; }
  template <class A>
  Reader<A> reader() const {
    return {array_of<Mixed>(x), Divisor(run)};
  }
};

// Rows of x (V, columns) that index (i32) names; NaN for a row that is not there, since a kernel can't refuse.
struct Gathered {
  Operand x, index;
  template <class A>
  struct Reader {
    A x;
    const int32_t* index;
    int64_t rows;
    Divisor columns;
    template <int N>
    LTX_DEVICE Floats<N> read(int64_t i) const {
      const int64_t row = index[i / columns];
      if (row >= 0 && row < rows) return x.template read<N>(row * columns.value + i % columns);
      Floats<N> nothing;
#pragma unroll
      for (int j = 0; j < N; ++j) nothing[j] = NAN;
      return nothing;
    }
  };
  bool fits(int n) const { return cuda::fits(x, n) && x.columns() % n == 0; }
  bool is(int dtype) const { return x.dtype() == dtype; }
  template <class A>
  Reader<A> reader() const {
    return {array_of<A>(x), index.data<const int32_t>(), x.rows(), Divisor(x.columns())};
  }
};

// --- the pass

// A function of floats, element by element.
template <int N, class F, class... Values>
LTX_DEVICE Floats<N> for_each(F f, const Values&... values) {
  Floats<N> result;
#pragma unroll
  for (int j = 0; j < N; ++j) result[j] = f(values[j]...);
  return result;
}

// The value as it is, -0 too.
struct Same {
  template <int N>
  LTX_DEVICE Floats<N> operator()(const Floats<N>& x) const {
    return x;
  }
};

template <int N, class A, class F, class... Readers>
__global__ void __launch_bounds__(kThreads) map_elements(int64_t count, A y, F f, Readers... x) {
  for (int64_t i = strided_begin() * N; i < count; i += strided_step() * N) {
    if (i + N <= count) {
      y.write(i, f(x.template read<N>(i)...));
    } else {
      for (int64_t j = i; j < count; ++j) y.write(j, f(x.template read<1>(j)...));
    }
  }
}

// y[i] = f(x[i]...), where f takes and returns Floats<N> for any N. y may be what an operand is read from, at the same
// elements.
template <class F, class... Sources>
void map_to(const Call& call, Operand y, const F& f, const Sources&... x) {
  const int64_t count = y.size();
  if (!count) return;
  const auto launch_with = [&](auto array, auto width) {
    using A = decltype(array);
    constexpr int N = decltype(width)::value;
    LTX_LAUNCH(call, (map_elements<N, A, F, typename Sources::template Reader<A>...>), grid_for(divide_up(count, N)),
               kThreads, 0, count, array_of<A>(y), f, x.template reader<A>()...);
  };
  const auto vectors = [&](int n) { return fits(y, n) && (x.fits(n) && ...); };
  const auto all = [&](int dtype) { return y.dtype() == dtype && (x.is(dtype) && ...); };
  // Vectors of 16 bytes of one dtype, of 4 elements of several, or none.
  if (all(LTX_BF16) && vectors(8)) return launch_with(Dense<bf16>{}, std::integral_constant<int, 8>{});
  if (all(LTX_F32) && vectors(4)) return launch_with(Dense<float>{}, std::integral_constant<int, 4>{});
  if (vectors(4)) return launch_with(Mixed{}, std::integral_constant<int, 4>{});
  launch_with(Mixed{}, std::integral_constant<int, 1>{});
}

}  // namespace ltx::cuda
