// Memory of a device that tensors share, freed in stream order when the last of them goes.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>

#include "device.h"

namespace ltx {

class Storage {
 public:
  Storage(std::shared_ptr<Device> device, std::shared_ptr<Client> client, size_t bytes, MemoryGroup group)
      : device_(std::move(device)),
        client_(std::move(client)),
        group_(group),
        block_(device_->allocator().allocate(bytes, group)) {}
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return block_.data; }
  const std::shared_ptr<Device>& device() const { return device_; }
  const std::shared_ptr<Client>& client() const { return client_; }
  uint64_t version() const { return version_; }
  void touch() { ++version_; }
  const std::shared_ptr<Health>& health() const { return health_; }
  LtxCache* cache() const { return cache_.get(); }
  // From here on backends may keep packed copies beside this storage.
  void mark_parameter() {
    if (!cache_) cache_ = std::make_unique<LtxCache>(LtxCache{nullptr});
  }

 private:
  std::shared_ptr<Device> device_;
  std::shared_ptr<Client> client_;
  MemoryGroup group_;
  Allocator::Block block_;
  uint64_t version_ = 1;
  std::shared_ptr<Health> health_ = std::make_shared<Health>();
  std::unique_ptr<LtxCache> cache_;
};

struct TensorRecord {
  std::shared_ptr<Storage> storage;
  std::array<int64_t, LTX_MAX_DIMS> shape{};
  int dims = 0;
  LtxDtype dtype = LTX_F32;
  size_t offset = 0;  // bytes into the storage

  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < dims; ++i) n *= shape[i];
    return n;
  }
  size_t bytes() const { return static_cast<size_t>(size()) * dtype_size(dtype); }
  // Takes a shape from JavaScript, once the dtype is known. False, with nothing changed, for what is none, or whose
  // bytes, and those of any part of it, can't be counted.
  bool take_shape(int count, const double* sizes) {
    constexpr int64_t kMost = int64_t{1} << 53;
    if (count < 0 || count > LTX_MAX_DIMS) return false;
    int64_t total = static_cast<int64_t>(dtype_size(dtype));
    for (int i = 0; i < count; ++i) {
      if (!(sizes[i] >= 0 && sizes[i] <= static_cast<double>(kMost)) || sizes[i] != std::floor(sizes[i])) return false;
      const int64_t size = static_cast<int64_t>(sizes[i]);
      if (size && (__builtin_mul_overflow(total, size, &total) || total > kMost)) return false;
    }
    dims = count;
    for (int i = 0; i < count; ++i) shape[i] = static_cast<int64_t>(sizes[i]);
    return true;
  }
  LtxTensor view() const {
    LtxTensor tensor{};
    tensor.data = storage->data() ? static_cast<char*>(storage->data()) + offset : nullptr;
    for (int i = 0; i < dims; ++i) tensor.shape[i] = shape[i];
    tensor.dims = dims;
    tensor.dtype = dtype;
    tensor.version = storage->version();
    tensor.cache = offset == 0 ? storage->cache() : nullptr;
    return tensor;
  }
};

}  // namespace ltx
