#include "environment.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <future>
#include <map>
#include <memory>
#include <new>
#include <utility>

#include "rules.h"
#include "settlement.h"

namespace ltx {
namespace {

// Devices are shared by all environments of the process and closed with the last of them.
std::shared_ptr<Device> shared_device(const std::string& library, int index, int64_t limit,
                                      const std::string& limited_by, const Threads& threads) {
  // Never destroyed: threads of the process may open one while it exits.
  static auto& mutex = *new std::mutex;
  static auto& devices = *new std::map<std::pair<std::string, int>, std::weak_ptr<Device>>;
  std::lock_guard lock(mutex);
  auto& known = devices[{library, index}];
  if (auto device = known.lock()) return device;
  auto device = Device::open(library, index, threads);
  if (limit >= 0) device->allocator().set_limit(static_cast<size_t>(limit), limited_by);
  known = device;
  return device;
}

// Gives the segments that are empty now back to the backend, once nothing that is queued uses them any more.
void trim(Device& device, const std::shared_ptr<Client>& client) {
  const auto segments = device.allocator().detach_cached();
  std::promise<void> reached;
  Task task;
  task.client = client;
  task.interrupts = "memory ran out in mid-step";
  task.always = true;
  task.action = [&, backend = device.backend()](const FailurePtr&) {
    backend->wait(backend->context);
    reached.set_value();
    return FailurePtr();
  };
  device.enqueue(std::move(task));
  reached.get_future().wait();
  device.allocator().free_segments(segments);
}

// A task that writes a tensor.
Task writing(TensorRecord& target) {
  target.storage->touch();
  Task task;
  task.client = target.storage->client();
  task.tensors = {target.view()};
  task.health = {target.storage->health()};
  task.first_updated = task.end_output = 1;
  return task;
}

}  // namespace

Napi::Error coded(Napi::Env env, const char* code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", code);
  return error;
}

Environment::Environment(Napi::Env env) : env_(env), tensors_(1) {
  napi_value name = Napi::String::New(env, "ltx-native read");
  if (napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, settle,
                                      &settle_function_) != napi_ok) {
    throw Napi::Error::New(env, "cannot create the read queue");
  }
  napi_unref_threadsafe_function(env, settle_function_);  // only pending reads keep the process alive
  // Registered after the function, so it runs before the function is torn down.
  napi_add_env_cleanup_hook(
      env, [](void* self) { static_cast<Environment*>(self)->close(); }, this);
}

Environment::~Environment() { close(); }

void Environment::close() {
  if (devices_.empty() && tensors_.empty()) return;
  for (auto& [device, client] : devices_) client->cancel();
  tensors_.clear();
  free_ids_.clear();
  for (auto& [device, client] : devices_) device->drain(client);
  devices_.clear();
}

int Environment::open(const std::string& library, int index, int64_t limit, const std::string& limited_by,
                      const Threads& threads) {
  auto device = shared_device(library, index, limit, limited_by, threads);
  for (size_t i = 0; i < devices_.size(); ++i) {
    if (devices_[i].device == device) return static_cast<int>(i);
  }
  devices_.push_back({device});
  return static_cast<int>(devices_.size()) - 1;
}

const Environment::Opened& Environment::opened(int index) const {
  if (index < 0 || index >= static_cast<int>(devices_.size())) throw coded(env_, "invalid_argument", "no such device");
  return devices_[index];
}

const std::shared_ptr<Device>& Environment::device(int index) const { return opened(index).device; }

const Environment::Opened& Environment::owner(const TensorRecord& record) const {
  for (const Opened& each : devices_) {
    if (each.device == record.storage->device()) return each;
  }
  throw Napi::Error::New(env_, "no such device");
}

TensorRecord& Environment::tensor(int32_t id) {
  if (id <= 0 || id >= static_cast<int32_t>(tensors_.size()) || !tensors_[id].storage) {
    throw coded(env_, "disposed", "tensor " + std::to_string(id) + " is disposed");
  }
  return tensors_[id];
}

void Environment::set_limit(int index, size_t bytes) {
  const auto& [device, client] = opened(index);
  device->allocator().set_limit(bytes, "as setMemoryLimit says");
  const MemoryStats stats = device->allocator().stats();
  if (stats.live + stats.cached > bytes) trim(*device, client);
}

int32_t Environment::insert(TensorRecord record) {
  int32_t id;
  if (free_ids_.empty()) {
    id = static_cast<int32_t>(tensors_.size());
    tensors_.emplace_back();
  } else {
    id = free_ids_.back();
    free_ids_.pop_back();
  }
  tensors_[id] = std::move(record);
  return id;
}

int32_t Environment::create(int device_index, int dtype, int group_index, int dims, const double* shape) {
  if (dtype < 0 || dtype > LTX_U8) throw coded(env_, "invalid_argument", "no such dtype");
  if (group_index < 0 || group_index >= kGroupCount) throw coded(env_, "invalid_argument", "no such memory group");
  const auto group = static_cast<MemoryGroup>(group_index);
  TensorRecord record;
  record.dtype = static_cast<LtxDtype>(dtype);
  if (!record.take_shape(dims, shape)) throw coded(env_, "invalid_argument", "a tensor can't have this shape");
  const auto& [owner, client] = opened(device_index);
  try {
    record.storage = std::make_shared<Storage>(owner, client, record.bytes(), group);
  } catch (const OutOfMemory&) {
    trim(*owner, client);
    try {
      record.storage = std::make_shared<Storage>(owner, client, record.bytes(), group);
    } catch (const OutOfMemory& error) {
      throw coded(env_, "out_of_memory", error.what());
    }
  }
  return insert(std::move(record));
}

int32_t Environment::view(int32_t id, int dims, const double* shape, int64_t offset) {
  TensorRecord record = tensor(id);
  const size_t element = dtype_size(record.dtype), source = record.bytes();
  if (!record.take_shape(dims, shape)) throw coded(env_, "invalid_argument", "a view can't have this shape");
  if (offset < 0 || static_cast<size_t>(offset) > source / element ||
      record.bytes() > source - static_cast<size_t>(offset) * element) {
    throw coded(env_, "shape_mismatch", "a view may not reach past its tensor");
  }
  record.offset += static_cast<size_t>(offset) * element;
  return insert(std::move(record));
}

void Environment::release(int32_t id) {
  tensor(id).storage.reset();
  free_ids_.push_back(id);
}

void Environment::upload(int32_t id, const void* data, size_t bytes) {
  TensorRecord& target = tensor(id);
  if (bytes != target.bytes()) throw coded(env_, "shape_mismatch", "upload of the wrong size");
  if (bytes == 0) return;
  std::shared_ptr<char[]> copy(new (std::nothrow) char[bytes]);
  if (!copy) {
    throw coded(env_, "out_of_memory", "out of memory on the host: " + std::to_string(bytes) + " bytes asked for");
  }
  std::memcpy(copy.get(), data, bytes);
  Task task = writing(target);
  // Indices: a device that works later could not say at once that one is wrong.
  if (target.dtype == LTX_I32) task.copy = copy;
  task.action = [copy, bytes, destination = task.tensors[0].data,
                 backend = target.storage->device()->backend()](const FailurePtr&) -> FailurePtr {
    char error[1024] = "";
    const int status = backend->copy_in(backend->context, destination, copy.get(), bytes, error, sizeof error);
    if (status == 0) return nullptr;
    const char* code = status == LTX_OUT_OF_MEMORY ? "out_of_memory" : "native";
    return std::make_shared<Failure>(Failure{code, "[write] " + std::string(error)});
  };
  target.storage->device()->enqueue(std::move(task));
}

int32_t Environment::map_file(const std::string& path, int32_t descriptor) {
  files_.push_back(std::make_shared<const MappedFile>(path, descriptor));
  return static_cast<int32_t>(files_.size()) - 1;
}

void Environment::unmap_file(int32_t file) {
  this->file(file);
  files_[file] = nullptr;
  while (!files_.empty() && !files_.back()) files_.pop_back();
}

const std::shared_ptr<const MappedFile>& Environment::file(int32_t number) const {
  if (number < 0 || static_cast<size_t>(number) >= files_.size() || !files_[number]) {
    throw coded(env_, "invalid_argument", "no file " + std::to_string(number) + " is mapped");
  }
  return files_[number];
}

void Environment::load(int32_t id, int32_t number, const FileTensor& source) {
  TensorRecord& target = tensor(id);
  const std::shared_ptr<const MappedFile> file = this->file(number);
  if (source.dtype < 0 || source.dtype >= kFileDtypeCount) {
    throw coded(env_, "invalid_argument", "no such element type in files");
  }
  if (target.dtype != LTX_F32 && target.dtype != LTX_BF16) {
    throw coded(env_, "dtype_mismatch", "weights are loaded as f32 or bf16");
  }
  int64_t count = 0;
  const bool counted = source.outer >= 0 && source.a >= 0 && source.b >= 0 &&
                       !__builtin_mul_overflow(source.outer, source.a, &count) &&
                       !__builtin_mul_overflow(count, source.b, &count);
  const size_t bytes = counted && count == target.size() ? source.bytes() : 0;
  if (!counted || count != target.size()) {
    throw coded(env_, "shape_mismatch", "a tensor to load must have its target's size");
  }
  if (source.offset > file->size() || bytes > file->size() - source.offset) {
    throw coded(env_, "io", file->path() + " became shorter while it was read; is it being written?");
  }
  if (bytes == 0) return;
  Task task = writing(target);
  task.action = [file, source, destination = task.tensors[0].data, dtype = target.dtype,
                 backend = target.storage->device()->backend()](const FailurePtr&) -> FailurePtr {
    try {
      load_tensor(backend, *file, source, destination, dtype);
      return nullptr;
    } catch (const std::bad_alloc&) {
      return std::make_shared<Failure>(Failure{"out_of_memory", "[load] out of memory on the host"});
    } catch (const std::exception& error) {
      return std::make_shared<Failure>(Failure{"io", "[load] " + std::string(error.what())});
    }
  };
  target.storage->device()->enqueue(std::move(task));
}

void Environment::run(int op, const int32_t* operands, int tensor_count, const double* values, int scalar_count) {
  if (op < 0 || op >= LTX_OP_COUNT) throw coded(env_, "invalid_argument", "no such op");
  if (tensor_count < 0 || static_cast<size_t>(tensor_count) > id_capacity || scalar_count < 0 ||
      static_cast<size_t>(scalar_count) > scalar_capacity) {
    throw coded(env_, "invalid_argument", "[" + std::string(op_name(op)) + "] more operands than there is room for");
  }
  const OpSignature& expected = signature(op);
  const int listed = tensor_count - expected.required_or_optional;
  const bool count_fits = expected.lists ? listed >= 0 && listed % expected.lists == 0 : listed == 0;
  if (!count_fits || scalar_count != expected.scalar_count) {
    throw coded(env_, "native", "[" + std::string(op_name(op)) + "] wrong number of operands or scalars");
  }
  Task task;
  task.op = op;
  task.first_output = expected.first_output;
  task.first_updated = expected.first_updated;
  task.end_output = tensor_count - (expected.lists ? listed / expected.lists * expected.read_lists : 0);
  task.tensors.resize(tensor_count);
  task.health.resize(tensor_count);
  Device* target = nullptr;
  for (int i = 0; i < tensor_count; ++i) {
    const bool fixed = i < expected.required_or_optional;
    if (operands[i] == 0) {
      if (!fixed || !expected.optional[i]) {
        throw coded(env_, "native",
                    "[" + std::string(op_name(op)) + "] operand " +
                        expected.operand_names[fixed ? i : expected.required_or_optional] + " is missing");
      }
      task.tensors[i].dims = -1;
      continue;
    }
    TensorRecord& record = tensor(operands[i]);
    if (target && target != record.storage->device().get()) {
      throw coded(env_, "native", "[" + std::string(op_name(op)) + "] operands are on different devices");
    }
    target = record.storage->device().get();
    task.client = record.storage->client();
    if (i >= task.first_output && i < task.end_output) record.storage->touch();
    task.tensors[i] = record.view();
    task.health[i] = record.storage->health();
  }
  if (!target) return;
  if (const std::string reason = mismatch(op, task.tensors, values); !reason.empty()) {
    throw coded(env_, "shape_mismatch", "[" + std::string(op_name(op)) + "] " + reason);
  }
  // An op that writes nothing has nothing to do, however long its other dimensions are.
  bool writes = false;
  for (int i = task.first_output; i < task.end_output; ++i) {
    const LtxTensor& output = task.tensors[i];
    writes |= output.dims >= 0 && std::find(output.shape, output.shape + output.dims, 0) == output.shape + output.dims;
  }
  if (!writes) return;
  task.scalars.assign(values, values + scalar_count);
  target->enqueue(std::move(task));
}

Napi::Promise Environment::await(const Opened& opened, const char* interrupts, const TensorRecord* wanted, bool read) {
  const auto& [device, client] = opened;
  auto settlement = std::make_shared<Settlement>();
  napi_value promise;
  if (napi_create_promise(env_, &settlement->deferred, &promise) != napi_ok) throw Napi::Error::New(env_);
  settlement->function = settle_function_;
  settlement->device = device.get();
  settlement->client = client;
  settlement->bytes = read ? wanted->bytes() : 0;
  if (pending_reads_++ == 0) napi_ref_threadsafe_function(env_, settle_function_);
  Task task;
  task.client = client;
  task.interrupts = interrupts;
  const void* from = nullptr;
  if (wanted) {
    task.tensors = {wanted->view()};
    task.health = {wanted->storage->health()};
    task.first_output = task.first_updated = task.end_output = 1;
    from = task.tensors[0].data;
  }
  // Who waits for nothing in particular hears of what nobody was told of.
  task.action = [settlement, from, all = !wanted](const FailurePtr& missing) {
    Settlement::start(settlement, from, all ? settlement->client->take_untold() : missing);
    return FailurePtr();
  };
  device->enqueue(std::move(task));
  return Napi::Promise(env_, promise);
}

void Environment::settle(napi_env env, napi_value, void* context, void* data) {
  const std::unique_ptr<Settlement::Pointer> settlement(static_cast<Settlement::Pointer*>(data));
  if (!env) return;
  auto* self = static_cast<Environment*>(context);
  if (--self->pending_reads_ == 0) napi_unref_threadsafe_function(env, self->settle_function_);
  (*settlement)->settle(env);
}

bool Environment::begin_step(int index) {
  const auto& [device, client] = opened(index);
  if (!device->backend()->record_begin) return false;
  device->begin_step(client);
  return true;
}

void Environment::end_step(int index) {
  const auto& [device, client] = opened(index);
  device->end_step(client);
}

StepReport Environment::step_report(int index) const { return opened(index).client->step_report(); }

Napi::Promise Environment::read(int32_t id) {
  const TensorRecord& source = tensor(id);
  return await(owner(source), "a tensor was read in mid-step", &source, true);
}

Napi::Promise Environment::ready(int32_t id) {
  const TensorRecord& wanted = tensor(id);
  return await(owner(wanted), "a tensor was waited for in mid-step", &wanted, false);
}

Napi::Promise Environment::synchronize(int index) {
  return await(opened(index), "the device was synchronized in mid-step", nullptr, false);
}

}  // namespace ltx
