#include <memory>

#include "weights.cuh"

namespace ltx::cuda {
namespace {

struct Copy {
  Context* context;
  bf16* data;
  uint64_t version;  // of the parameter that it was made from
};

constexpr int kWidth = 8;

__global__ void __launch_bounds__(kThreads) round_weights(const float* x, bf16* y, int64_t count) {
  for (int64_t i = strided_begin() * kWidth; i < count; i += strided_step() * kWidth) {
    if (i + kWidth <= count) {
      const Floats<4> low = load<4>(x + i), high = load<4>(x + i + 4);
      Floats<kWidth> values;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        values[j] = low[j];
        values[4 + j] = high[j];
      }
      store(y + i, values);
    } else {
      for (int64_t j = i; j < count; ++j) y[j] = bf16(x[j]);
    }
  }
}

void make_copy(const Call& call, const float* x, bf16* y, int64_t count) {
  LTX_LAUNCH(call, round_weights, grid_for(divide_up(count, kWidth)), kThreads, 0, x, y, count);
}

const bf16* bf16_copy(const Call& call, Operand weight) {
  const LtxTensor& tensor = *weight.tensor;
  const int64_t count = weight.size();
  if (!tensor.cache) {
    bf16* data = scratch<bf16>(call, 7, count);
    make_copy(call, weight.data<float>(), data, count);
    return data;
  }
  auto* copy = static_cast<Copy*>(tensor.cache->state);
  if (!copy) {
    void* memory = count ? device_allocate(context(call), static_cast<size_t>(count) * sizeof(bf16)) : nullptr;
    if (count && !memory) throw std::runtime_error("out of memory for the bf16 copy of a parameter");
    copy = new Copy{&context(call), static_cast<bf16*>(memory), 0};
    tensor.cache->state = copy;
  }
  if (copy->version != tensor.version) {
    make_copy(call, weight.data<float>(), copy->data, count);
    copy->version = tensor.version;
  }
  return copy->data;
}

const float* f32_copy(const Call& call, Operand weight) {
  LtxTensor tensors[] = {*weight.tensor, *weight.tensor};
  tensors[1].data = scratch<float>(call, 7, weight.size());
  tensors[1].dtype = LTX_F32;
  const double scale_shift[] = {1.0, 0.0};
  LtxCall raw = *call.raw;
  raw.tensors = tensors, raw.tensor_count = 2;
  raw.scalars = scale_shift, raw.scalar_count = 2;
  cast(Call{&raw});
  return static_cast<const float*>(tensors[1].data);
}

}  // namespace

template <>
const float* weights(const Call& call, Operand weight) {
  return weight.dtype() == LTX_F32 ? weight.data<float>() : f32_copy(call, weight);
}
template <>
const bf16* weights(const Call& call, Operand weight) {
  return weight.dtype() == LTX_BF16 ? weight.data<bf16>() : bf16_copy(call, weight);
}

bf16* copy_to_write(Operand parameter) {
  const LtxTensor& tensor = *parameter.tensor;
  auto* copy = tensor.cache ? static_cast<Copy*>(tensor.cache->state) : nullptr;
  if (!copy) return nullptr;
  copy->version = tensor.version;
  return copy->data;
}

void free_cache(void*, void* state) {
  const std::unique_ptr<Copy> copy(static_cast<Copy*>(state));
  if (copy->data) device_free(*copy->context, copy->data);
}

void refresh(void* context, const LtxTensor* parameter) {
  if (!parameter->cache || !parameter->cache->state) return;
  LtxCall raw{};
  raw.context = context;
  enter(*static_cast<Context*>(context));
  bf16_copy(Call{&raw}, Operand{parameter});
}

}  // namespace ltx::cuda
