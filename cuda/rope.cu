// The rotation alone: neighbouring channels of a token turned by the token's angles.
#include "attention_rows.cuh"
#include "common.cuh"

namespace ltx::cuda {
namespace {

// One block a row. y may be x: a unit is read before it is written, by one thread.
template <class T, bool kWhole, bool kInverse>
__global__ void __launch_bounds__(kRowThreads)
    rotate_rows(const T* x, const float* cos, const float* sin, T* y, uint32_t batch, int64_t length, int64_t width) {
  constexpr int N = kUnit<T, kWhole>;
  const TokenRow at(blockIdx.x, batch, length);
  const int64_t offset = at.row * width, angles = at.token * width;
  for (int64_t c = threadIdx.x * N; c < width; c += kRowThreads * N) {
    Floats<N> values = read_unit<N, kWhole>(x + offset, c, width);
    rotate<kInverse, kWhole>(values, cos + angles, sin + angles, c, width);
    write_unit<N, kWhole>(y + offset, c, width, values);
  }
}

}  // namespace

void rope(const Call& call) {
  const int64_t batch = call[0].dim(0), length = call[0].dim(1), width = call[0].dim(2);
  const float *cos = call[1].data<float>(), *sin = call[2].data<float>();
  dispatch(call[0], [&](auto tag) {
    using T = decltype(tag);
    const T* x = call[0].data<T>();
    T* y = call[3].data<T>();
    dispatch(whole_units(width, x, y, cos, sin), [&](auto whole) {
      dispatch(call.integer(0) != 0, [&](auto inverse) {
        LTX_LAUNCH(call, (rotate_rows<T, whole, inverse>), dim3(static_cast<uint32_t>(batch * length)), kRowThreads, 0,
                   x, cos, sin, y, static_cast<uint32_t>(batch), length, width);
      });
    });
  });
}

}  // namespace ltx::cuda
