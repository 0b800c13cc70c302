// Reads from a device without holding up its worker thread: the bytes go to page-locked memory in the stream's order, a
// thread of its own waits for them and hands them over.
#pragma once
#include <cuda_runtime.h>

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

#include "../native/runtime/backend.h"

namespace ltx::cuda {

class Reader {
 public:
  explicit Reader(int device);
  // Throws when the copy can't be queued; then done is not called.
  void read(cudaStream_t stream, void* host, const void* device, size_t bytes, LtxDone done, void* argument);

 private:
  struct Job {
    cudaEvent_t arrived;
    void* host;
    char* pinned;
    size_t bytes;
    LtxDone done;
    void* argument;
  };
  static constexpr size_t kAsynchronous = size_t{64} << 20;

  void work();
  char* take_pinned(size_t bytes);

  int device_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Job> jobs_;
  std::vector<cudaEvent_t> events_;
  std::multimap<size_t, char*> pinned_;
};

}  // namespace ltx::cuda
