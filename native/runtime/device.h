// A device: a backend, its allocator, and its one ordered stream (a worker thread that runs what is queued).
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "allocator.h"
#include "backend.h"
#include "health.h"
#include "step_recorder.h"

namespace ltx {

// One user of one device: a JavaScript environment.
class Client {
 public:
  Client();
  ~Client();
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  // From here on what this client queued is dropped.
  void cancel() { cancelled_.store(true, std::memory_order_release); }
  // The first failure that nobody was told of, null when there is none; after this call they all count as told. The
  // worker's.
  FailurePtr take_untold();
  StepReport step_report();
  void set_step_report(const StepReport& report);

 private:
  friend class Device;
  void note(const FailurePtr& failure);
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_;
  StepReport step_report_;
  std::vector<FailurePtr> untold_;       // the worker's
  std::unique_ptr<StepRecorder> steps_;  // the worker's
  int64_t pending_ = 0;                  // tasks and holds; guarded by the device's queue mutex
};

class Device;

// A kernel's call, an action or a mark.
struct Task {
  using Mark = void (Device::*)(const std::shared_ptr<Client>&);
  std::shared_ptr<Client> client;
  std::vector<LtxTensor> tensors;
  std::vector<std::shared_ptr<Health>> health;  // of the tensors' storages
  std::vector<double> scalars;
  int op = -1;
  // The operands from first_output to end_output are written, those from first_updated on read, too.
  int first_output = 0, first_updated = 0, end_output = 0;
  const char* interrupts = nullptr;  // why it can't be collected with a step; static
  bool always = false;               // is not dropped with the work of a client that ends
  Mark mark = nullptr;
  // Runs instead of a kernel when op is -1. It is told why what it reads is missing, if it is, and tells why it failed.
  std::function<FailurePtr(const FailurePtr& missing)> action;
  std::shared_ptr<const char[]> copy;  // of what the action writes, if the host is to keep it
};

// How OpenMP is to work in backends that use it, where the environment does not say otherwise.
struct Threads {
  int count = 0;         // 0: OpenMP's default
  bool passive = false;  // threads sleep while they wait
};

class Device {
 public:
  // Opens one of a backend's devices. Throws std::runtime_error with the reason when it can't be used.
  static std::shared_ptr<Device> open(const std::string& library, int index, const Threads& threads);

  explicit Device(const LtxBackend* backend);
  ~Device();
  // The process ends: each of its devices finishes the kernel that runs and the bytes that are on their way, and drops
  // the rest, then and later. After that the libraries that kernels use may go.
  static void stop_all();

  // Blocks while the queue is full.
  void enqueue(Task task);
  // Between these the client's work is a step, which is recorded and replayed where the backend can.
  void begin_step(const std::shared_ptr<Client>& client) { mark(client, &Device::open_step); }
  void end_step(const std::shared_ptr<Client>& client) { mark(client, &Device::close_step); }
  // Returns when nothing that the client queued or holds is left. The client queues nothing after.
  void drain(const std::shared_ptr<Client>& client);
  // From the worker, for what the backend ends later: the client is not drained before the unhold, on any thread.
  void hold(Client& client);
  void unhold(Client& client);
  void free_cache(Client& client, LtxCache& cache);

  // At most one kernel profile at a time: seconds and calls by op since it was switched on.
  void set_profiling(bool on);
  struct OpTime {
    double seconds = 0;
    int64_t calls = 0;
  };
  std::vector<OpTime> profile();

  const LtxBackend* backend() const { return backend_; }
  // A JSON object.
  const std::string& description() const { return description_.get(); }
  Allocator& allocator() { return allocator_; }

 private:
  friend class StepRecorder;
  void mark(const std::shared_ptr<Client>& client, Task::Mark what);
  void open_step(const std::shared_ptr<Client>& client);
  void close_step(const std::shared_ptr<Client>& client);
  void forget_steps(const std::shared_ptr<Client>& client);

  void stop();
  void work();
  void take(Task task);
  // A kernel runs unless something that it reads is missing; what it does not write is missing from then on.
  void run(Task& task);
  FailurePtr missing(const Task& task) const;
  FailurePtr call(Task& task);
  void conclude(const Task& task, const FailurePtr& failure);
  // Calls the kernel; not 0 with its reason.
  int launch(const Task& task, char* error, size_t error_size);
  void finish(Task& task);
  void release(Client& client);  // one of what is pending; under the queue's mutex
  bool profiling() const { return profiling_.load(std::memory_order_relaxed); }

  static constexpr size_t kQueueLimit = 8192;
  const LtxBackend* backend_;
  Allocator allocator_;
  std::mutex mutex_;
  std::condition_variable ready_, room_, drained_;
  std::deque<Task> queue_;
  bool stopping_ = false, waiting_ = false;
  std::atomic<bool> dropping_{false};  // what is queued, but for what always runs
  bool stopped_ = false;               // the worker takes no more; what must run then does so where it is queued
  bool left_ = false;                  // the worker has done its last
  std::mutex last_mutex_;              // of whoever does the worker's work once it has stopped
  int held_ = 0;
  std::set<std::pair<int, unsigned>> called_;  // ops, with the dtypes of their operands as bits; the worker's
  std::shared_ptr<Client> in_step_;            // the worker's
  std::atomic<bool> profiling_{false};
  std::mutex profile_mutex_;
  std::vector<OpTime> profile_;
  std::promise<std::string> describing_;
  std::shared_future<std::string> description_ = describing_.get_future();
  std::thread worker_;  // last: it uses all of the above
};

const char* op_name(int op);
inline size_t dtype_size(LtxDtype dtype) { return dtype == LTX_BF16 ? 2 : dtype == LTX_U8 ? 1 : 4; }

}  // namespace ltx
