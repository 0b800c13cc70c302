#include "storage.h"

namespace ltx {

Storage::~Storage() {
  if (cache_) {
    // Queued kernels may still read the packed copies: free them behind those.
    Task task;
    task.client = client_;
    std::shared_ptr<LtxCache> cache(cache_.release());
    task.action = [cache, backend = device_->backend()](bool) {
      if (cache->state) backend->free_cache(backend->context, cache->state);
      cache->state = nullptr;
    };
    device_->enqueue(std::move(task));
  }
  device_->allocator().release(block_, group_);
}

}  // namespace ltx
