// The C interface between the runtime and a backend. A backend is a shared library that exports ltx_backend().
// Kernels trust their arguments: shapes and dtypes are checked on the JavaScript thread by lib/ops.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Raised whenever a struct below or the meaning of a line in ops.def changes.
#define LTX_BACKEND_VERSION 5
#define LTX_MAX_DIMS 8

typedef enum LtxDtype { LTX_F32 = 0, LTX_BF16 = 1, LTX_I32 = 2, LTX_U8 = 3 } LtxDtype;

// What a backend keeps beside a parameter's storage (packed weights); freed in stream order with the storage.
typedef struct LtxCache {
  void* state;
} LtxCache;

// A contiguous row-major array. data is NULL for an operand that was left out and for an empty array; the first has
// dims < 0.
typedef struct LtxTensor {
  void* data;
  int64_t shape[LTX_MAX_DIMS];
  int32_t dims;
  int32_t dtype;
  uint64_t version;  // changes whenever the storage is written
  LtxCache* cache;   // NULL unless the tensor is a parameter
  const void* host;  // the same values (i32 only) in the host's memory, where they are known there; else NULL
} LtxTensor;

typedef struct LtxCall {
  void* context;  // LtxBackend's
  const LtxTensor* tensors;
  const double* scalars;
  int32_t tensor_count;
  int32_t scalar_count;
  char* error;  // a kernel that fails writes its reason here and returns LTX_FAILED or LTX_OUT_OF_MEMORY
  size_t error_size;
} LtxCall;

enum { LTX_FAILED = 1, LTX_OUT_OF_MEMORY = 2 };
typedef int (*LtxKernel)(const LtxCall* call);

enum {
#define LTX_OP(name, operands, scalars) LTX_OP_##name,
#include "ops.def"
#undef LTX_OP
  LTX_OP_COUNT
};

// error is NULL, or why the device could not do what was queued.
typedef void (*LtxDone)(void* argument, const char* error);

// All functions but allocate and memory_total are called on the device's worker thread, one at a time. A backend may do
// its work later, in the order of the calls.
typedef struct LtxBackend {
  uint32_t version;
  uint32_t op_count;
  const char* name;
  void* context;             // of this device; handed to every function and, in LtxCall, to every kernel
  const LtxKernel* kernels;  // op_count of them, in the order of ops.def
  void* (*allocate)(void* context, size_t bytes);             // NULL when out of memory
  void (*release)(void* context, void* block, size_t bytes);  // also on other threads, when nothing uses the block
  // host may change at once. Returns what a kernel does.
  int (*copy_in)(void* context, void* device, const void* host, size_t bytes, char* error, size_t error_size);
  // Calls done once all earlier work is done and the bytes (there may be none) are in host: perhaps on another thread,
  // perhaps before copy_out returns.
  void (*copy_out)(void* context, void* host, const void* device, size_t bytes, LtxDone done, void* argument);
  void (*wait)(void* context);  // until all earlier work is done
  void (*free_cache)(void* context, void* state);
  // Brings up to date what the backend keeps beside a parameter, if it keeps anything.
  void (*refresh)(void* context, const LtxTensor* parameter);
  size_t (*memory_total)(void* context);                     // bytes that the device can give at most
  void (*describe)(void* context, char* json, size_t size);  // a JSON object: instruction set, threads, versions
  // Recordings: NULL where the backend has none. Between record_begin and record_end kernels are noted and not run;
  // replay runs them all. record_end returns NULL, replay nonzero with the reason when that can't be done: the kernels
  // are then to be called anew. A recording that is stale (its scratch memory moved) is refused by replay.
  int (*record_begin)(void* context, char* reason, size_t size);
  void* (*record_end)(void* context, char* reason, size_t size);
  int (*replay)(void* context, void* recording, char* reason, size_t size);
  void (*free_recording)(void* context, void* recording);
} LtxBackend;

// device: 0 is the first of its kind. Returns NULL and writes the reason when this machine can't run the backend or the
// version differs.
typedef const LtxBackend* (*LtxBackendEntry)(uint32_t version, int device, char* reason, size_t reason_size);

#ifdef __cplusplus
}
#endif
