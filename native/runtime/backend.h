// The C interface between the runtime and a backend. A backend is a shared library that exports ltx_backend().
// Kernels trust their arguments: shapes and dtypes are checked on the JavaScript thread by lib/ops.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Raised whenever a struct below or the meaning of a line in ops.def changes.
#define LTX_BACKEND_VERSION 2
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
} LtxTensor;

typedef struct LtxCall {
  const LtxTensor* tensors;
  const double* scalars;
  int32_t tensor_count;
  int32_t scalar_count;
  char* error;  // a kernel that fails writes its reason here and returns nonzero
  size_t error_size;
} LtxCall;

typedef int (*LtxKernel)(const LtxCall* call);

enum {
#define LTX_OP(name, operands, scalars) LTX_OP_##name,
#include "ops.def"
#undef LTX_OP
  LTX_OP_COUNT
};

typedef struct LtxBackend {
  uint32_t version;
  uint32_t op_count;
  const char* name;
  const LtxKernel* kernels;         // op_count of them, in the order of ops.def
  void* (*allocate)(size_t bytes);  // NULL when out of memory
  void (*release)(void* block, size_t bytes);
  void (*copy_in)(void* device, const void* host, size_t bytes);
  void (*copy_out)(void* host, const void* device, size_t bytes);
  void (*free_cache)(void* state);
  size_t (*memory_total)(void);               // bytes that the device can give at most
  void (*describe)(char* json, size_t size);  // a JSON object: instruction set, threads, library versions
} LtxBackend;

// Returns NULL and writes the reason when this machine can't run the backend or the version differs.
typedef const LtxBackend* (*LtxBackendEntry)(uint32_t version, char* reason, size_t reason_size);

#ifdef __cplusplus
}
#endif
