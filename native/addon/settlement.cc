#include "settlement.h"

#include <cstdlib>
#include <cstring>
#include <utility>

namespace ltx {
namespace {

// Plain calls, whose failure is passed over: a worker thread that is being terminated refuses them, and nobody is left
// there to hear of it. The C++ wrappers would throw, through frames that are not ours.
void reject(napi_env env, napi_deferred deferred, const char* code, const std::string& message) {
  napi_value name, text, error;
  if (napi_create_string_utf8(env, code, NAPI_AUTO_LENGTH, &name) == napi_ok &&
      napi_create_string_utf8(env, message.data(), message.size(), &text) == napi_ok &&
      napi_create_error(env, name, text, &error) == napi_ok) {
    napi_reject_deferred(env, deferred, error);
  }
}

// Runtimes that keep JavaScript's memory in a cage (Electron) refuse memory from outside; LTX_EXTERNAL_BUFFERS=0 does
// so anywhere.
bool external_buffers() {
  static const char* value = std::getenv("LTX_EXTERNAL_BUFFERS");
  return !value || std::strcmp(value, "0") != 0;
}

// An ArrayBuffer of these bytes, which takes `data` over (it is null then) or copies it; null where there is no room.
napi_value buffer_of(napi_env env, void*& data, size_t bytes) {
  const auto release = [](napi_env, void* memory, void*) { std::free(memory); };
  napi_value result;
  if (bytes && external_buffers() &&
      napi_create_external_arraybuffer(env, data, bytes, release, nullptr, &result) == napi_ok) {
    data = nullptr;
    return result;
  }
  // The constructor throws where napi_create_arraybuffer would end the process.
  napi_value global, constructor, length;
  void* memory = nullptr;
  size_t size = 0;
  if (napi_get_global(env, &global) == napi_ok &&
      napi_get_named_property(env, global, "ArrayBuffer", &constructor) == napi_ok &&
      napi_create_double(env, static_cast<double>(bytes), &length) == napi_ok &&
      napi_new_instance(env, constructor, 1, &length, &result) == napi_ok &&
      napi_get_arraybuffer_info(env, result, &memory, &size) == napi_ok && size == bytes) {
    if (bytes) std::memcpy(memory, data, bytes);
    return result;
  }
  napi_value exception;
  napi_get_and_clear_last_exception(env, &exception);
  return nullptr;
}

std::string no_room(size_t bytes) { return "[read] out of memory: " + std::to_string(bytes) + " bytes on the host"; }

}  // namespace

Settlement::~Settlement() { std::free(data_); }

void Settlement::start(const Pointer& self, const void* from, const FailurePtr& failure) {
  if (failure) {
    failure->told = true;
    return fail(self, failure->code, failure->message);
  }
  const size_t bytes = self->bytes;
  if (bytes && !(self->data_ = std::malloc(bytes))) return fail(self, "out_of_memory", no_room(bytes));
  self->device->hold(*self->client);
  const LtxBackend* backend = self->device->backend();
  const auto done = [](void* argument, const char* reason) {
    const std::unique_ptr<Pointer> held(static_cast<Pointer*>(argument));
    Settlement& self = **held;
    Device* const device = self.device;
    const auto client = self.client;
    if (reason) self.error_ = "[" + std::string(device->backend()->name) + "] " + reason;
    finish(*held);
    device->unhold(*client);
  };
  backend->copy_out(backend->context, self->data_, from, bytes, done, new Pointer(self));
}

void Settlement::settle(napi_env env) {
  if (!error_.empty()) return reject(env, deferred, code_, error_);
  if (const napi_value buffer = buffer_of(env, data_, bytes)) {
    napi_resolve_deferred(env, deferred, buffer);
  } else {
    reject(env, deferred, "out_of_memory", no_room(bytes));
  }
}

void Settlement::fail(const Pointer& self, const char* code, std::string message) {
  self->code_ = code;
  self->error_ = std::move(message);
  finish(self);
}

// Hands it over to the JavaScript thread, unless nobody is left there.
void Settlement::finish(const Pointer& self) {
  if (self->client->cancelled()) return;
  auto handed = std::make_unique<Pointer>(self);
  if (napi_call_threadsafe_function(self->function, handed.get(), napi_tsfn_nonblocking) == napi_ok) handed.release();
}

}  // namespace ltx
