// Gated residual addition and the noise plane of the decoder.
#include "columns.cuh"
#include "divisor.cuh"
#include "samples.cuh"

namespace ltx::cuda {
namespace {

// x, y of T, h of H; ada (G, table, columns): a run of rows has one gate.
template <class T, class H, int V>
struct GatedAdd {
  const T* x;
  const H* h;
  AnyFloat ada;
  T* y;
  int64_t run, columns, table, gate_row;
  using State = Floats<V>;
  LTX_DEVICE State enter(int64_t row, int64_t column) const {
    return load<V>(ada, (row / run * table + gate_row) * columns + column);
  }
  LTX_DEVICE void operator()(int64_t row, int64_t column, const State& gate) const {
    const int64_t i = row * columns + column;
    Floats<V> sum = load<V>(x + i);
    const Floats<V> value = load<V>(h + i);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += value[j] * gate[j];
    store(y + i, sum);
  }
};

// dh = dy gate; the gate's gradient is the sum of dy h.
template <class T, class H, int V>
struct GatedAddBackward {
  const H* h;
  AnyFloat ada;
  const T* dy;
  H* dh;
  int64_t run, columns, table, gate_row;
  using State = Floats<V>;
  LTX_DEVICE State enter(int64_t row, int64_t column) const {
    return load<V>(ada, (row / run * table + gate_row) * columns + column);
  }
  LTX_DEVICE void operator()(int64_t row, int64_t column, const State& gate, Floats<V> (&sums)[1]) const {
    const int64_t i = row * columns + column;
    Floats<V> d = load<V>(dy + i);
    const Floats<V> value = load<V>(h + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      sums[0][j] += d[j] * value[j];
      d[j] *= gate[j];
    }
    store(dh + i, d);
  }
};

// dada (G, table, columns): sums (G, columns) in one row, zero in the others.
struct WriteRow {
  const float* sums;
  AnyFloat dada;
  int64_t columns, table, row;
  LTX_DEVICE void operator()(int64_t g, int64_t i) const {
    dada.set(g * table * columns + i, i / columns == row ? sums[g * columns + i % columns] : 0.0f);
  }
};

// scale (columns) f32; plane (pixels).
template <class T, int V>
struct AddPlane {
  const T* x;
  AnyFloat plane, scale;
  T* y;
  int64_t columns;
  Divisor pixels;
  using State = Floats<V>;
  LTX_DEVICE State enter(int64_t, int64_t column) const { return load<V>(scale, column); }
  LTX_DEVICE void operator()(int64_t row, int64_t column, const State& factor) const {
    const int64_t i = row * columns + column;
    Floats<V> value = load<V>(x + i);
    const float noise = plane[row % pixels];
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] += noise * factor[j];
    store(y + i, value);
  }
};

template <class T, int V>
struct AddPlaneBackward {
  AnyFloat plane;
  const T* dy;
  int64_t columns;
  Divisor pixels;
  struct State {};
  LTX_DEVICE State enter(int64_t, int64_t) const { return {}; }
  LTX_DEVICE void operator()(int64_t row, int64_t column, State, Floats<V> (&sums)[1]) const {
    const Floats<V> d = load<V>(dy + row * columns + column);
    const float noise = plane[row % pixels];
#pragma unroll
    for (int j = 0; j < V; ++j) sums[0][j] += noise * d[j];
  }
};

}  // namespace

void gated_add(const Call& call) {
  const Operand x = call[0], h = call[1], ada = call[2], y = call[3];
  const int64_t columns = y.columns(), rows = y.rows();
  if (!rows || !columns) return;
  const int64_t run = rows / ada.dim(0);
  dispatch(x, h, [&](auto tx, auto th) {
    using T = decltype(tx);
    using H = decltype(th);
    dispatch_width<T>(columns, {x.data<void>(), h.data<void>(), ada.data<void>(), y.data<void>()}, [&](auto width) {
      constexpr int V = decltype(width)::value;
      visit_columns<V>(call, rows, run, columns,
                       GatedAdd<T, H, V>{x.data<const T>(), h.data<const H>(), any_float(ada), y.data<T>(), run,
                                         columns, ada.dim(1), call.integer(0)});
    });
  });
}

void gated_add_backward(const Call& call) {
  const Operand h = call[0], ada = call[1], dy = call[2], dh = call[3], dada = call[4];
  const int64_t columns = dy.columns(), rows = dy.rows(), gate_row = call.integer(0), groups = ada.dim(0);
  if (!rows || !columns) return clear(call, dada);
  const int64_t run = rows / groups;
  float* sums = scratch<float>(call, 0, groups * columns);
  dispatch(dy, h, [&](auto ty, auto th) {
    using T = decltype(ty);
    using H = decltype(th);
    dispatch_width<T>(columns, {h.data<void>(), ada.data<void>(), dy.data<void>(), dh.data<void>()}, [&](auto width) {
      constexpr int V = decltype(width)::value;
      sum_columns<1, V>(call, rows, run, columns, sums,
                        GatedAddBackward<T, H, V>{h.data<const H>(), any_float(ada), dy.data<const T>(), dh.data<H>(),
                                                  run, columns, ada.dim(1), gate_row});
    });
  });
  visit_samples<1>(call, groups, ada.dim(1) * columns, WriteRow{sums, any_float(dada), columns, ada.dim(1), gate_row});
}

void add_plane(const Call& call) {
  const Operand x = call[0], plane = call[1], scale = call[2], y = call[3];
  const int64_t columns = y.columns(), rows = y.rows();
  dispatch(x, [&](auto tag) {
    using T = decltype(tag);
    dispatch_width<T>(columns, {x.data<void>(), scale.data<void>(), y.data<void>()}, [&](auto width) {
      constexpr int V = decltype(width)::value;
      visit_columns<V>(call, rows, rows, columns,
                       AddPlane<T, V>{x.data<const T>(), any_float(plane), any_float(scale), y.data<T>(), columns,
                                      Divisor(plane.size())});
    });
  });
}

void add_plane_backward(const Call& call) {
  const Operand plane = call[0], dy = call[1], dscale = call[2];
  const int64_t columns = dy.columns(), rows = columns ? dy.rows() : 0;
  dispatch(dy, [&](auto tag) {
    using T = decltype(tag);
    dispatch_width<T>(columns, {dy.data<void>()}, [&](auto width) {
      constexpr int V = decltype(width)::value;
      sum_columns<1, V>(call, rows, rows, columns, dscale.data<float>(),
                        AddPlaneBackward<T, V>{any_float(plane), dy.data<const T>(), columns, Divisor(plane.size())});
    });
  });
}

}  // namespace ltx::cuda
