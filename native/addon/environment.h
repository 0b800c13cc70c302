// What one JavaScript environment (the main thread or a worker thread) holds: its tensors, its devices, its promises.
#pragma once
#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "../runtime/mapped_file.h"
#include "../runtime/storage.h"

namespace ltx {

// An error whose `code` is one of lib/errors.ts.
Napi::Error coded(Napi::Env env, const char* code, const std::string& message);

class Environment {
 public:
  explicit Environment(Napi::Env env);
  ~Environment();
  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  // `limit` bytes (-1: all that there is) may be handed out because of `limited_by`. A device that is open already is
  // left as it is.
  int open(const std::string& library, int index, int64_t limit, const std::string& limited_by, const Threads& threads);
  const std::shared_ptr<Device>& device(int index) const;

  int32_t create(int device, int dtype, int group, int dims, const double* shape);
  int32_t view(int32_t id, int dims, const double* shape, int64_t offset);
  void release(int32_t id);
  TensorRecord& tensor(int32_t id);

  void upload(int32_t id, const void* data, size_t bytes);
  // Files that tensors are loaded from; what is queued keeps its own mapped.
  int32_t map_file(const std::string& path, int32_t descriptor);
  void unmap_file(int32_t file);
  void load(int32_t id, int32_t file, const FileTensor& source);
  void run(int op, const int32_t* ids, int tensor_count, const double* scalars, int scalar_count);
  // Whether the backend can record: false leaves nothing to end.
  bool begin_step(int device);
  void end_step(int device);
  // Memory that nothing uses is given back where it exceeds the limit.
  void set_limit(int device, size_t bytes);
  StepReport step_report(int device) const;
  Napi::Promise read(int32_t id);
  Napi::Promise ready(int32_t id);
  Napi::Promise synchronize(int device);

  // The buffers through which JavaScript passes ids, shapes and scalars without a call per value.
  int32_t* ids = nullptr;
  double* scalars = nullptr;
  size_t id_capacity = 0, scalar_capacity = 0;
  Napi::Reference<Napi::TypedArray> id_buffer, scalar_buffer;

 private:
  // A client each: failures and what is pending belong to one device.
  struct Opened {
    std::shared_ptr<Device> device;
    std::shared_ptr<Client> client = std::make_shared<Client>();
  };
  const Opened& opened(int index) const;
  int32_t insert(TensorRecord record);
  const std::shared_ptr<const MappedFile>& file(int32_t number) const;
  const Opened& owner(const TensorRecord& record) const;
  // Settled once all that was queued before has run, with the wanted tensor's bytes if they are to be read. Rejected
  // when it could not be made or, where none is wanted, when anything failed of which nobody was told.
  Napi::Promise await(const Opened& opened, const char* interrupts, const TensorRecord* wanted, bool read);
  void close();
  static void settle(napi_env env, napi_value, void* context, void* data);

  Napi::Env env_;
  std::vector<Opened> devices_;
  std::vector<TensorRecord> tensors_;  // index = id; 0 is no tensor
  std::vector<int32_t> free_ids_;
  std::vector<std::shared_ptr<const MappedFile>> files_;  // index = number
  napi_threadsafe_function settle_function_ = nullptr;
  int pending_reads_ = 0;
};

// Parsed from ops.def.
struct OpSignature {
  int required_or_optional = 0;  // fixed operands
  int first_output = 0;          // index of the first operand that is written
  int first_updated = 0;         // index of the first operand that is written and read
  int lists = 0;                 // operands with *, behind the fixed ones
  int read_lists = 0;            // the last of them, which are not written
  int scalar_count = 0;
  std::vector<bool> optional;
  std::vector<std::string> operand_names;
};
const OpSignature& signature(int op);

}  // namespace ltx
