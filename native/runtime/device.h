// A device: a backend, its allocator, and its one ordered stream (a worker thread that runs what is queued).
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "allocator.h"
#include "backend.h"
#include "step_recorder.h"

namespace ltx {

// One user of one device: a JavaScript environment. Its first failure is kept until the next await asks for it; until
// then the rest of its queued work is skipped, since it would compute on garbage.
class Client {
 public:
  Client();
  ~Client();
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  // From here on kernels that this client queued are skipped.
  void cancel() { cancelled_.store(true, std::memory_order_release); }
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  void fail(std::string message);
  std::string take_error();  // empty when there is none
  StepReport step_report();
  void set_step_report(const StepReport& report);

 private:
  friend class Device;
  std::atomic<bool> cancelled_{false}, failed_{false};
  std::mutex mutex_;
  std::string error_;
  StepReport step_report_;
  std::unique_ptr<StepRecorder> steps_;  // the worker's
  int64_t pending_ = 0;                  // tasks and holds; guarded by the device's queue mutex
};

class Device;

// A kernel's call, an action or a mark.
struct Task {
  using Mark = void (Device::*)(const std::shared_ptr<Client>&);
  std::shared_ptr<Client> client;
  std::vector<LtxTensor> tensors;
  std::vector<double> scalars;
  int op = -1;
  int first_output = 0, end_output = 0;  // the operands between are written
  const char* interrupts = nullptr;      // why it can't be collected with a step; static
  Mark mark = nullptr;
  std::function<void(bool skipped)> action;  // runs instead of a kernel when op is -1
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

  void work();
  void take(Task task);
  void run(Task& task);
  // Calls the kernel; false with its reason.
  bool launch(const Task& task, char* error, size_t error_size);
  void finish(Task& task);
  bool profiling() const { return profiling_.load(std::memory_order_relaxed); }

  static constexpr size_t kQueueLimit = 8192;
  const LtxBackend* backend_;
  Allocator allocator_;
  std::mutex mutex_;
  std::condition_variable ready_, room_, drained_;
  std::deque<Task> queue_;
  bool stopping_ = false, waiting_ = false;
  std::shared_ptr<Client> in_step_;  // the worker's
  std::atomic<bool> profiling_{false};
  std::mutex profile_mutex_;
  std::vector<OpTime> profile_;
  std::promise<std::string> describing_;
  std::shared_future<std::string> description_ = describing_.get_future();
  std::thread worker_;  // last: it uses all of the above
};

const char* op_name(int op);

}  // namespace ltx
