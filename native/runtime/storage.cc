#include "storage.h"

namespace ltx {

Storage::~Storage() {
  if (cache_) {
    // Queued kernels may still read the packed copies: free them behind those.
    Task task;
    task.client = client_;
    std::shared_ptr<LtxCache> cache(cache_.release());
    task.interrupts = "a parameter was freed in mid-step";
    task.always = true;
    task.action = [cache, client = client_, device = device_.get()](const FailurePtr&) {
      device->free_cache(*client, *cache);
      return FailurePtr();
    };
    device_->enqueue(std::move(task));
  }
  device_->allocator().release(block_, group_);
}

}  // namespace ltx
