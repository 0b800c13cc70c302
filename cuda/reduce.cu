// Sums and distances per sample, x (B, N), y (B), and sums over everything or over rows.
#include "columns.cuh"
#include "samples.cuh"

namespace ltx::cuda {
namespace {

// What is summed; a switch in the kernel, since it is the memory that takes the time.
enum class Term { kValue, kSquare, kProduct, kDistance, kSquaredDistance };

LTX_DEVICE float value(Term term, float a, float b) {
  switch (term) {
    case Term::kValue:
      return a;
    case Term::kSquare:
      return a * a;
    case Term::kProduct:
      return a * b;
    case Term::kDistance:
      return fabsf(a - b);
    default:
      return (a - b) * (a - b);
  }
}
LTX_DEVICE float derivative(Term term, float a, float b) {
  switch (term) {
    case Term::kValue:
      return 1.0f;
    case Term::kSquare:
      return 2.0f * a;
    case Term::kProduct:
      return b;
    case Term::kDistance:
      return a > b ? 1.0f : a < b ? -1.0f : 0.0f;
    default:
      return 2.0f * (a - b);
  }
}

template <class TA, class TB, int V>
struct Pair {
  const TA* a;  // (B, length)
  const TB* b;  // likewise, or null
  LTX_DEVICE void read(int64_t i, Floats<V>& left, Floats<V>& right) const {
    left = load<V>(a + i);
    right = b ? load<V>(b + i) : left;
  }
};

template <class TA, class TB, int V>
struct Forward {
  Pair<TA, TB, V> pair;
  int64_t length;
  Term term;
  LTX_DEVICE float operator()(int64_t sample, int64_t i) const {
    Floats<V> a, b;
    pair.read(sample * length + i, a, b);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < V; ++j) sum += value(term, a[j], b[j]);
    return sum;
  }
};

// da = scale dy (d term / da), of the dtype of a.
template <class TA, class TB, int V>
struct Backward {
  Pair<TA, TB, V> pair;
  AnyFloat dy;  // (B)
  TA* da;       // (B, length)
  float scale;
  int64_t length;
  Term term;
  LTX_DEVICE void operator()(int64_t sample, int64_t i) const {
    Floats<V> a, b;
    pair.read(sample * length + i, a, b);
    const float d = scale * dy[sample];
#pragma unroll
    for (int j = 0; j < V; ++j) a[j] = d * derivative(term, a[j], b[j]);
    store(da + sample * length + i, a);
  }
};

// Calls body(TA, TB, V as an integral constant) for the widest access that the length and the addresses allow.
template <class Body>
void dispatch_pair(Operand a, Operand b, int64_t length, const void* written, Body&& body) {
  dispatch(a, b, [&](auto ta, auto tb) {
    constexpr int kWidth = std::max(kVector<decltype(ta)>, kVector<decltype(tb)>);
    if (length % kWidth == 0 && aligned16(a.data<void>()) && aligned16(b.data<void>()) && aligned16(written)) {
      body(ta, tb, std::integral_constant<int, kWidth>{});
    } else {
      body(ta, tb, std::integral_constant<int, 1>{});
    }
  });
}

// b may be a, which is then read once.
void forward(const Call& call, Operand a, Operand b, Operand y, int64_t batch, double scale, Term term) {
  if (!batch) return;
  const int64_t length = a.size() / batch;
  dispatch_pair(a, b, length, nullptr, [&](auto ta, auto tb, auto width) {
    using TA = decltype(ta);
    using TB = decltype(tb);
    constexpr int V = decltype(width)::value;
    const TB* other = a.tensor == b.tensor ? nullptr : b.data<const TB>();
    sum_samples<V>(call, batch, length, scale, any_float(y),
                   Forward<TA, TB, V>{{a.data<const TA>(), other}, length, term});
  });
}

void backward(const Call& call, Operand a, Operand b, Operand dy, Operand da, double scale, Term term) {
  const int64_t batch = dy.size();
  if (!da.size()) return;
  const int64_t length = da.size() / batch;
  dispatch_pair(a, b, length, da.data<void>(), [&](auto ta, auto tb, auto width) {
    using TA = decltype(ta);
    using TB = decltype(tb);
    constexpr int V = decltype(width)::value;
    const TB* other = a.tensor == b.tensor ? nullptr : b.data<const TB>();
    visit_samples<V>(
        call, batch, length,
        Backward<TA, TB, V>{
            {a.data<const TA>(), other}, any_float(dy), da.data<TA>(), static_cast<float>(scale), length, term});
  });
}

Term reduce_term(const Call& call) { return call.integer(0) == kSum ? Term::kValue : Term::kSquare; }
Term loss_term(const Call& call) { return call.integer(0) == kL1 ? Term::kDistance : Term::kSquaredDistance; }

}  // namespace

void reduce(const Call& call) {
  forward(call, call[0], call[0], call[1], call[1].size(), call.scalar(1), reduce_term(call));
}

void reduce_backward(const Call& call) {
  backward(call, call[0], call[0], call[1], call[2], call.scalar(1), reduce_term(call));
}

void pair_loss(const Call& call) {
  forward(call, call[0], call[1], call[2], call[2].size(), call.scalar(1), loss_term(call));
}

void pair_loss_backward(const Call& call) {
  backward(call, call[0], call[1], call[2], call[3], call.scalar(1), loss_term(call));
}

void dot(const Call& call) { forward(call, call[0], call[1], call[2], 1, 1.0, Term::kProduct); }

void sum_rows(const Call& call) {
  const Operand x = call[0], y = call[1];
  const int64_t columns = x.columns(), rows = columns ? x.rows() : 0;
  dispatch(x, [&](auto tag) {
    using T = decltype(tag);
    sum_columns(call, x.data<const T>(), rows, rows, columns, y.data<float>());
  });
}

}  // namespace ltx::cuda
