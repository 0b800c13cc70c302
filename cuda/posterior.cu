// The diagonal Gaussian posterior: moments (B, ..., 2C) hold C means, then C log-variances a position. The latter are
// clamped, and no gradient passes outside the clamp. Latents are small: one element a thread, of either dtype.
#include "activation.cuh"
#include "divisor.cuh"
#include "samples.cuh"

namespace ltx::cuda {
namespace {

constexpr float kLowest = -30.0f, kHighest = 20.0f;

LTX_DEVICE float clamped(float logvar) { return at_most(at_least(logvar, kLowest), kHighest); }
LTX_DEVICE float inside(float logvar) { return logvar >= kLowest && logvar <= kHighest ? 1.0f : 0.0f; }

// The means of `batch` samples of `length` elements in positions of `channels`; i counts the means of a sample.
struct Moments {
  AnyFloat data;
  int64_t length;
  Divisor positions;  // of channels
  LTX_DEVICE int64_t mean(int64_t sample, int64_t i) const {
    return 2 * sample * length + i / positions * positions.value + i;
  }
  LTX_DEVICE int64_t logvar(int64_t mean) const { return mean + positions.value; }
};

struct Extent {
  int64_t batch, length, channels;
  explicit Extent(Operand moments)
      : batch(moments.dims() ? moments.dim(0) : 1),
        length(batch ? moments.size() / batch / 2 : 0),
        channels(moments.columns() / 2) {}
  Moments moments(Operand operand) const { return {any_float(operand), length, Divisor(channels)}; }
};

struct Sample {
  Moments moments;
  AnyFloat noise, z;
  LTX_DEVICE void operator()(int64_t sample, int64_t i) const {
    const int64_t mean = moments.mean(sample, i), at = sample * moments.length + i;
    z.set(at, moments.data[mean] + expf(0.5f * clamped(moments.data[moments.logvar(mean)])) * noise[at]);
  }
};

struct SampleBackward {
  Moments moments;
  AnyFloat noise, dz, dmoments;
  LTX_DEVICE void operator()(int64_t sample, int64_t i) const {
    const int64_t mean = moments.mean(sample, i), at = sample * moments.length + i;
    const float logvar = moments.data[moments.logvar(mean)], d = dz[at];
    dmoments.set(mean, d);
    dmoments.set(moments.logvar(mean), inside(logvar) * 0.5f * expf(0.5f * clamped(logvar)) * noise[at] * d);
  }
};

struct Divergence {
  Moments moments;
  LTX_DEVICE float operator()(int64_t sample, int64_t i) const {
    const int64_t at = moments.mean(sample, i);
    const float mean = moments.data[at], logvar = clamped(moments.data[moments.logvar(at)]);
    return mean * mean + (expf(logvar) - 1.0f - logvar);
  }
};

struct DivergenceBackward {
  Moments moments;
  AnyFloat dkl, dmoments;
  LTX_DEVICE void operator()(int64_t sample, int64_t i) const {
    const int64_t mean = moments.mean(sample, i);
    const float logvar = moments.data[moments.logvar(mean)], d = dkl[sample];
    dmoments.set(mean, d * moments.data[mean]);
    dmoments.set(moments.logvar(mean), inside(logvar) * 0.5f * d * (expf(clamped(logvar)) - 1.0f));
  }
};

struct LogVariance {
  Moments moments;
  LTX_DEVICE float operator()(int64_t sample, int64_t i) const {
    return clamped(moments.data[moments.logvar(moments.mean(sample, i))]);
  }
};

struct LogVarianceBackward {
  Moments moments;
  AnyFloat dy, dmoments;
  float share;
  LTX_DEVICE void operator()(int64_t sample, int64_t i) const {
    const int64_t mean = moments.mean(sample, i);
    dmoments.set(mean, 0.0f);
    dmoments.set(moments.logvar(mean), inside(moments.data[moments.logvar(mean)]) * share * dy[sample]);
  }
};

double share(const Extent& extent) { return 1.0 / static_cast<double>(std::max<int64_t>(extent.length, 1)); }

struct Expand {
  AnyFloat x, y;  // (R, in), (R, out)
  int64_t in;
  Divisor out;
  LTX_DEVICE void operator()(int64_t, int64_t i) const {
    const int64_t row = i / out, column = i - row * out.value;
    y.set(i, x[row * in + (column < in ? column : in - 1)]);
  }
};

// One warp a row: dy (R, out), dx (R, in).
__global__ void __launch_bounds__(kThreads)
    expand_backward(AnyFloat dy, AnyFloat dx, int64_t rows, int64_t in, int64_t out) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  float sum = 0.0f;
  for (int64_t column = threadIdx.x; column < out && row < rows; column += kWarp) {
    const float value = dy[row * out + column];
    if (column < in - 1) {
      dx.set(row * in + column, value);
    } else {
      sum += value;
    }
  }
  sum = warp_reduce(sum);
  if (threadIdx.x == 0 && row < rows) dx.set(row * in + in - 1, sum);
}

}  // namespace

void expand_moments(const Call& call) {
  visit_samples<1>(call, 1, call[1].size(),
                   Expand{any_float(call[0]), any_float(call[1]), call[0].columns(), Divisor(call[1].columns())});
}

void expand_moments_backward(const Call& call) {
  const Operand dy = call[0], dx = call[1];
  const int64_t rows = dx.rows(), warps = kThreads / kWarp;
  LTX_LAUNCH(call, expand_backward, dim3(static_cast<uint32_t>(divide_up(rows, warps))),
             dim3(kWarp, static_cast<uint32_t>(warps)), 0, any_float(dy), any_float(dx), rows, dx.columns(),
             dy.columns());
}

void posterior_sample(const Call& call) {
  const Extent e(call[0]);
  visit_samples<1>(call, e.batch, e.length, Sample{e.moments(call[0]), any_float(call[1]), any_float(call[2])});
}

void posterior_sample_backward(const Call& call) {
  const Extent e(call[0]);
  visit_samples<1>(call, e.batch, e.length,
                   SampleBackward{e.moments(call[0]), any_float(call[1]), any_float(call[2]), any_float(call[3])});
}

void posterior_kl(const Call& call) {
  const Extent e(call[0]);
  sum_samples<1>(call, e.batch, e.length, 0.5, any_float(call[1]), Divergence{e.moments(call[0])});
}

void posterior_kl_backward(const Call& call) {
  const Extent e(call[0]);
  visit_samples<1>(call, e.batch, e.length,
                   DivergenceBackward{e.moments(call[0]), any_float(call[1]), any_float(call[2])});
}

void posterior_logvar(const Call& call) {
  const Extent e(call[0]);
  sum_samples<1>(call, e.batch, e.length, share(e), any_float(call[1]), LogVariance{e.moments(call[0])});
}

void posterior_logvar_backward(const Call& call) {
  const Extent e(call[0]);
  visit_samples<1>(
      call, e.batch, e.length,
      LogVarianceBackward{e.moments(call[0]), any_float(call[1]), any_float(call[2]), static_cast<float>(share(e))});
}

}  // namespace ltx::cuda
