#include "device.h"

#include <dlfcn.h>

#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <utility>

namespace ltx {

namespace {
constexpr const char* kOpNames[] = {
#define LTX_OP(name, operands, scalars) #name,
#include "ops.def"
#undef LTX_OP
};
}  // namespace

const char* op_name(int op) { return kOpNames[op]; }

Client::Client() = default;
Client::~Client() = default;

StepReport Client::step_report() {
  std::lock_guard lock(mutex_);
  return step_report_;
}

void Client::set_step_report(const StepReport& report) {
  std::lock_guard lock(mutex_);
  step_report_ = report;
}

void Client::fail(std::string message) {
  std::lock_guard lock(mutex_);
  if (failed()) return;
  error_ = std::move(message);
  failed_.store(true, std::memory_order_release);
}

std::string Client::take_error() {
  std::lock_guard lock(mutex_);
  failed_.store(false, std::memory_order_release);
  return std::exchange(error_, {});
}

namespace {

// Defaults for libgomp, which reads the environment when it is loaded: with the first backend that needs it. They are
// taken back, so that programs which this process starts don't inherit them.
class OpenMpDefaults {
 public:
  explicit OpenMpDefaults(const Threads& threads) {
    if (threads.count > 0) set("OMP_NUM_THREADS", std::to_string(threads.count));
    // OpenMP's own default spins for milliseconds at the end of every parallel region. When anything else wants a core
    // (another process, Node itself) each region then waits for a whole time slice; about 50 microseconds are enough to
    // bridge the gap between two kernels. Where threads share processors, any spinning takes time from those that work.
    if (!std::getenv("OMP_WAIT_POLICY")) set("GOMP_SPINCOUNT", threads.passive ? "0" : "2000");
  }
  ~OpenMpDefaults() {
    for (const char* name : names_) unsetenv(name);
  }

 private:
  void set(const char* name, const std::string& value) {
    if (!std::getenv(name) && setenv(name, value.c_str(), 0) == 0) names_.push_back(name);
  }
  std::vector<const char*> names_;
};

}  // namespace

std::shared_ptr<Device> Device::open(const std::string& library, int index, const Threads& threads) {
  const OpenMpDefaults defaults(threads);
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) throw std::runtime_error(dlerror());
  const auto entry = reinterpret_cast<LtxBackendEntry>(dlsym(handle, "ltx_backend"));
  if (!entry) throw std::runtime_error(library + " exports no ltx_backend");
  char reason[512] = "no reason given";
  const LtxBackend* backend = entry(LTX_BACKEND_VERSION, index, reason, sizeof reason);
  if (!backend) throw std::runtime_error(reason);
  if (backend->op_count != LTX_OP_COUNT) throw std::runtime_error(library + " was built from another op table");
  return std::make_shared<Device>(backend);
}

Device::Device(const LtxBackend* backend)
    : backend_(backend), allocator_(backend), profile_(LTX_OP_COUNT), worker_([this] { work(); }) {}

Device::~Device() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  ready_.notify_one();
  worker_.join();
}

void Device::enqueue(Task task) {
  std::unique_lock lock(mutex_);
  room_.wait(lock, [&] { return queue_.size() < kQueueLimit; });
  ++task.client->pending_;
  queue_.push_back(std::move(task));
  if (waiting_) ready_.notify_one();
}

void Device::drain(const std::shared_ptr<Client>& client) {
  mark(client, &Device::forget_steps);
  std::unique_lock lock(mutex_);
  drained_.wait(lock, [&] { return client->pending_ == 0; });
}

void Device::hold(Client& client) {
  std::lock_guard lock(mutex_);
  ++client.pending_;
}

void Device::unhold(Client& client) {
  // Under the lock to the end: once drained, the client's last user may take the device away.
  std::lock_guard lock(mutex_);
  if (--client.pending_ == 0) drained_.notify_all();
}

void Device::work() {
  char json[1024] = "{}";
  backend_->describe(backend_->context, json, sizeof json);
  describing_.set_value(json);
  std::unique_lock lock(mutex_);
  for (;;) {
    waiting_ = true;
    ready_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    waiting_ = false;
    if (queue_.empty()) break;
    Task task = std::move(queue_.front());
    queue_.pop_front();
    if (queue_.size() == kQueueLimit - 1) room_.notify_all();
    lock.unlock();
    take(std::move(task));
    lock.lock();
  }
  lock.unlock();
  backend_->wait(backend_->context);
}

// Work of others must not pass what was collected, since blocks that this will use may have become theirs; nor must
// what somebody waits for.
void Device::take(Task task) {
  if (in_step_ && in_step_ != task.client) in_step_->steps_->interrupt("another thread used the device in mid-step");
  if (task.mark) {
    (this->*task.mark)(task.client);
    return finish(task);
  }
  StepRecorder* const steps = task.client->steps_.get();
  if (steps && steps->collecting()) {
    if (!task.interrupts) return steps->add(std::move(task));
    steps->interrupt(task.interrupts);
  }
  run(task);
  finish(task);
}

void Device::finish(Task& task) {
  // The closure may own tensors of its client: it must be gone before the client counts as drained.
  task.action = nullptr;
  unhold(*std::exchange(task.client, nullptr));
}

void Device::mark(const std::shared_ptr<Client>& client, Task::Mark what) {
  Task task;
  task.client = client;
  task.mark = what;
  enqueue(std::move(task));
}

void Device::open_step(const std::shared_ptr<Client>& client) {
  if (!client->steps_) client->steps_ = std::make_unique<StepRecorder>(*this, *client);
  client->steps_->begin();
  in_step_ = client;
}

void Device::close_step(const std::shared_ptr<Client>& client) {
  if (client->steps_) client->steps_->end();
  if (in_step_ == client) in_step_ = nullptr;
}

void Device::forget_steps(const std::shared_ptr<Client>& client) {
  close_step(client);
  client->steps_ = nullptr;
}

void Device::free_cache(Client& client, LtxCache& cache) {
  if (client.steps_) client.steps_->forget(&cache);
  if (cache.state) backend_->free_cache(backend_->context, cache.state);
  cache.state = nullptr;
}

void Device::run(Task& task) {
  const bool skip = task.client->cancelled() || task.client->failed();
  if (task.op < 0) return task.action(skip);
  if (skip) return;
  char error[1024] = "";
  // Waiting before and after makes the times the device's own.
  const bool timed = profiling();
  if (timed) backend_->wait(backend_->context);
  const auto start = timed ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point{};
  if (!launch(task, error, sizeof error)) task.client->fail("[" + std::string(op_name(task.op)) + "] " + error);
  if (timed) {
    backend_->wait(backend_->context);
    std::lock_guard lock(profile_mutex_);
    profile_[task.op].seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ++profile_[task.op].calls;
  }
}

bool Device::launch(const Task& task, char* error, size_t error_size) {
  const LtxCall call{backend_->context,
                     task.tensors.data(),
                     task.scalars.data(),
                     static_cast<int32_t>(task.tensors.size()),
                     static_cast<int32_t>(task.scalars.size()),
                     error,
                     error_size};
  return backend_->kernels[task.op](&call) == 0;
}

void Device::set_profiling(bool on) {
  std::lock_guard lock(profile_mutex_);
  if (on) profile_.assign(LTX_OP_COUNT, {});
  profiling_.store(on, std::memory_order_relaxed);
}

std::vector<Device::OpTime> Device::profile() {
  std::lock_guard lock(profile_mutex_);
  return profile_;
}

}  // namespace ltx
