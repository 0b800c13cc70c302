#include "device.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <new>
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

void Client::note(const FailurePtr& failure) {
  constexpr size_t kMost = 64;  // the first is what counts
  std::erase_if(untold_, [](const FailurePtr& earlier) { return earlier->told; });
  if (untold_.size() < kMost) untold_.push_back(failure);
}

FailurePtr Client::take_untold() {
  const auto all = std::exchange(untold_, {});
  const auto first = std::find_if(all.begin(), all.end(), [](const FailurePtr& failure) { return !failure->told; });
  for (const FailurePtr& failure : all) failure->told = true;
  return first == all.end() ? nullptr : *first;
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

namespace {

// The process's. Never destroyed: it may exit while they work.
std::mutex& devices_mutex() {
  static auto& mutex = *new std::mutex;
  return mutex;
}
std::set<Device*>& devices() {
  static auto& all = *new std::set<Device*>;
  return all;
}

// lib/native.ts stops the devices when Node emits `exit`. This is for exits that pass that by: exit() runs handlers and
// static destructors in the reverse order of their making, so a handler has to be younger than all statics of the
// libraries that kernels use (oneDNN keeps its code in some), and those are made at first calls. One that is under way
// has no handler yet.
void stop_at_exit() {
  static const pid_t process = getpid();
  std::atexit([] {
    if (getpid() == process) Device::stop_all();  // a fork has no workers
  });
}

}  // namespace

Device::Device(const LtxBackend* backend)
    : backend_(backend), allocator_(backend), profile_(LTX_OP_COUNT), worker_([this] { work(); }) {
  std::lock_guard lock(devices_mutex());
  devices().insert(this);
}

void Device::stop_all() {
  std::lock_guard lock(devices_mutex());
  for (Device* device : devices()) device->dropping_ = true;
  for (Device* device : devices()) device->stop();
}

void Device::stop() {
  std::unique_lock lock(mutex_);
  stopping_ = true;
  ready_.notify_one();
  drained_.wait(lock, [&] { return left_ && held_ == 0; });
}

Device::~Device() {
  {
    std::lock_guard lock(devices_mutex());
    devices().erase(this);
  }
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  ready_.notify_one();
  worker_.join();
}

void Device::enqueue(Task task) {
  std::unique_lock lock(mutex_);
  room_.wait(lock, [&] { return stopped_ || queue_.size() < kQueueLimit; });
  if (stopped_) {
    lock.unlock();
    std::lock_guard last(last_mutex_);
    if (task.always) task.action(nullptr);
    if (task.mark) (this->*task.mark)(task.client);
    return;
  }
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
  ++held_;
}

void Device::unhold(Client& client) {
  // Under the lock to the end: once drained, the client's last user may take the device away.
  std::lock_guard lock(mutex_);
  --held_;
  release(client);
}

void Device::release(Client& client) {
  if (--client.pending_ == 0 || held_ == 0) drained_.notify_all();
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
    if (queue_.empty() || dropping_) break;
    Task task = std::move(queue_.front());
    queue_.pop_front();
    if (queue_.size() == kQueueLimit - 1) room_.notify_all();
    lock.unlock();
    take(std::move(task));
    lock.lock();
  }
  stopped_ = true;
  auto rest = std::exchange(queue_, {});
  room_.notify_all();
  lock.unlock();
  {
    std::lock_guard last(last_mutex_);
    for (Task& task : rest) take(std::move(task));
    backend_->wait(backend_->context);
  }
  lock.lock();
  left_ = true;
  drained_.notify_all();
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
  task.health.clear();
  const auto client = std::exchange(task.client, nullptr);
  // Under the lock to the end: once drained, the client's last user may take the device away.
  std::lock_guard lock(mutex_);
  release(*client);
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

namespace {

const char* begin_of(const LtxTensor& tensor) { return static_cast<const char*>(tensor.data); }

const char* end_of(const LtxTensor& tensor) {
  size_t bytes = dtype_size(static_cast<LtxDtype>(tensor.dtype));
  for (int i = 0; i < tensor.dims; ++i) bytes *= static_cast<size_t>(tensor.shape[i]);
  return begin_of(tensor) + bytes;
}

}  // namespace

void Device::run(Task& task) {
  if ((task.client->cancelled() || dropping_) && !task.always) return;
  FailurePtr failure = missing(task);
  if (task.op < 0 || !failure) {
    try {
      failure = task.op < 0 ? task.action(failure) : call(task);
    } catch (const std::bad_alloc&) {
      failure = std::make_shared<Failure>(Failure{"out_of_memory", "out of memory on the host"});
    }
    if (failure) task.client->note(failure);
  }
  conclude(task, failure);
}

FailurePtr Device::missing(const Task& task) const {
  for (int i = 0; i < static_cast<int>(task.health.size()); ++i) {
    if (!task.health[i] || task.health[i]->whole()) continue;
    if (i >= task.first_output && i < task.first_updated) continue;
    if (auto failure = task.health[i]->find(begin_of(task.tensors[i]), end_of(task.tensors[i]))) return failure;
  }
  return nullptr;
}

void Device::conclude(const Task& task, const FailurePtr& failure) {
  if (task.health.empty()) return;
  for (int i = task.first_output; i < task.end_output; ++i) {
    if (!task.health[i]) continue;
    const char *begin = begin_of(task.tensors[i]), *end = end_of(task.tensors[i]);
    failure ? task.health[i]->mark(begin, end, failure) : task.health[i]->written(begin, end, task.copy);
  }
}

FailurePtr Device::call(Task& task) {
  for (size_t i = 0; i < task.tensors.size(); ++i) {
    LtxTensor& tensor = task.tensors[i];
    if (tensor.dtype == LTX_I32 && task.health[i]) tensor.host = task.health[i]->copy(begin_of(tensor), end_of(tensor));
  }
  char error[1024] = "";
  // Waiting before and after makes the times the device's own.
  const bool timed = profiling();
  if (timed) backend_->wait(backend_->context);
  const auto start = timed ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point{};
  const int status = launch(task, error, sizeof error);
  unsigned dtypes = 0;
  for (const LtxTensor& tensor : task.tensors) dtypes |= tensor.dims < 0 ? 0 : 1u << tensor.dtype;
  if (called_.emplace(task.op, dtypes).second) stop_at_exit();
  if (timed) {
    backend_->wait(backend_->context);
    std::lock_guard lock(profile_mutex_);
    profile_[task.op].seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ++profile_[task.op].calls;
  }
  if (status == 0) return nullptr;
  const char* code = status == LTX_OUT_OF_MEMORY ? "out_of_memory" : "native";
  return std::make_shared<Failure>(Failure{code, "[" + std::string(op_name(task.op)) + "] " + error});
}

int Device::launch(const Task& task, char* error, size_t error_size) {
  const LtxCall call{backend_->context,
                     task.tensors.data(),
                     task.scalars.data(),
                     static_cast<int32_t>(task.tensors.size()),
                     static_cast<int32_t>(task.scalars.size()),
                     error,
                     error_size};
  return backend_->kernels[task.op](&call);
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
