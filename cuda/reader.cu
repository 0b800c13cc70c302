#include <algorithm>
#include <bit>
#include <cstring>
#include <thread>

#include "launch.cuh"
#include "reader.h"

namespace ltx::cuda {

namespace {
size_t pinned_size(size_t bytes) { return std::bit_ceil(std::max<size_t>(bytes, 4096)); }
}  // namespace

// Detached: it waits for jobs until the process ends.
Reader::Reader(int device) : device_(device) {
  std::thread([this] { work(); }).detach();
}

void Reader::read(cudaStream_t stream, void* host, const void* device, size_t bytes, LtxDone done, void* argument) {
  if (bytes > kAsynchronous) {  // page-locking this much costs more than waiting
    check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream), "copy from the device");
    check(cudaStreamSynchronize(stream), "the GPU");
    bytes = 0;
  }
  Job job{nullptr, host, take_pinned(bytes), bytes, done, argument};
  {
    std::lock_guard lock(mutex_);
    if (!events_.empty()) {
      job.arrived = events_.back();
      events_.pop_back();
    }
  }
  if (!job.arrived) {
    // Blocking: the reader's thread sleeps meanwhile instead of spinning on a core.
    check(cudaEventCreateWithFlags(&job.arrived, cudaEventDisableTiming | cudaEventBlockingSync), "event");
  }
  if (bytes) check(cudaMemcpyAsync(job.pinned, device, bytes, cudaMemcpyDeviceToHost, stream), "copy from the device");
  check(cudaEventRecord(job.arrived, stream), "event");
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back(job);
  }
  ready_.notify_one();
}

char* Reader::take_pinned(size_t bytes) {
  const size_t size = pinned_size(bytes);
  {
    std::lock_guard lock(mutex_);
    if (const auto found = pinned_.find(size); found != pinned_.end()) {
      char* block = found->second;
      pinned_.erase(found);
      return block;
    }
  }
  void* block = nullptr;
  check(cudaMallocHost(&block, size), "page-locked memory");
  return static_cast<char*>(block);
}

void Reader::work() {
  cudaSetDevice(device_);
  std::unique_lock lock(mutex_);
  for (;;) {
    ready_.wait(lock, [&] { return !jobs_.empty(); });
    const Job job = jobs_.front();
    jobs_.pop_front();
    lock.unlock();
    const cudaError_t status = cudaEventSynchronize(job.arrived);
    if (status == cudaSuccess && job.bytes) std::memcpy(job.host, job.pinned, job.bytes);
    lock.lock();
    events_.push_back(job.arrived);
    pinned_.emplace(pinned_size(job.bytes), job.pinned);
    lock.unlock();
    job.done(job.argument, status != cudaSuccess ? cudaGetErrorString(status) : nullptr);
    lock.lock();
  }
}

}  // namespace ltx::cuda
