// A promise on its way back to JavaScript, with the bytes that were read.
#pragma once
#include <napi.h>

#include <memory>
#include <string>

#include "../runtime/device.h"

namespace ltx {

// The device outlives it: the environment holds the device until its client is drained, and the read holds the client.
struct Settlement {
  using Pointer = std::shared_ptr<Settlement>;
  napi_deferred deferred = nullptr;
  napi_threadsafe_function function = nullptr;  // receives a Pointer* once there is something to settle
  Device* device = nullptr;
  std::shared_ptr<Client> client;
  size_t bytes = 0;

  Settlement() = default;
  Settlement(const Settlement&) = delete;
  Settlement& operator=(const Settlement&) = delete;
  ~Settlement();

  // The worker's part: waits for nothing, so that the device has work while JavaScript waits.
  static void start(const Pointer& self, const void* from, const FailurePtr& failure);
  // The JavaScript thread's part.
  void settle(napi_env env);

 private:
  static void fail(const Pointer& self, const char* code, std::string message);
  static void finish(const Pointer& self);

  void* data_ = nullptr;
  std::string error_;
  const char* code_ = "native";
};

}  // namespace ltx
