// The binding: a table of functions over Environment. lib/native.ts and lib/ops check arguments for the messages; here
// they are checked once more, for safety: whatever JavaScript passes ends in an error, never in a crash.
#include <napi.h>

#include <cmath>
#include <limits>
#include <new>

#include "environment.h"

namespace ltx {
namespace {

using Info = Napi::CallbackInfo;

Napi::Error wrong(const Info& info, int i, const char* expected) {
  return coded(info.Env(), "invalid_argument", "argument " + std::to_string(i) + " is not " + expected);
}

// Numbers that JavaScript can count to.
int64_t wide(const Info& info, int i) {
  const double value = info[i].IsNumber() ? info[i].As<Napi::Number>().DoubleValue() : std::nan("");
  if (!(std::fabs(value) <= 0x1p53) || value != std::floor(value)) throw wrong(info, i, "a whole number");
  return static_cast<int64_t>(value);
}

int integer(const Info& info, int i) {
  const int64_t value = wide(info, i);
  using Limits = std::numeric_limits<int>;
  if (value < Limits::min() || value > Limits::max()) throw wrong(info, i, "a whole number of 32 bits");
  return static_cast<int>(value);
}

std::string text(const Info& info, int i) {
  if (!info[i].IsString()) throw wrong(info, i, "text");
  return info[i].As<Napi::String>();
}

// Every exported function: what the C++ library throws becomes an error too, instead of the process's end.
template <Napi::Value (*kFunction)(const Info&)>
Napi::Value guarded(const Info& info) {
  try {
    return kFunction(info);
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw coded(info.Env(), "out_of_memory", "out of memory on the host");
  } catch (const std::exception& error) {
    throw coded(info.Env(), "native", error.what());
  } catch (...) {
    throw coded(info.Env(), "native", "unknown failure");
  }
}

Napi::Value ops(const Info& info) {
  Napi::Array all = Napi::Array::New(info.Env());
  uint32_t count = 0;
#define LTX_OP(name, operands, scalars)                        \
  {                                                            \
    Napi::Array op = Napi::Array::New(info.Env(), 3);          \
    op[uint32_t{0}] = Napi::String::New(info.Env(), #name);    \
    op[uint32_t{1}] = Napi::String::New(info.Env(), operands); \
    op[uint32_t{2}] = Napi::String::New(info.Env(), scalars);  \
    all[count++] = op;                                         \
  }
#include "../runtime/ops.def"
#undef LTX_OP
  return all;
}

// open(library, index, limit, limited by, threads, passive)
Napi::Value open(const Info& info) {
  const Threads threads{integer(info, 4), info[5].ToBoolean()};
  Environment& self = Environment::of(info.Env());
  return Napi::Number::New(info.Env(),
                           self.open(text(info, 0), integer(info, 1), wide(info, 2), text(info, 3), threads));
}

Napi::Value bind(const Info& info) {
  Environment& self = Environment::of(info.Env());
  if (!info[0].IsTypedArray() || !info[1].IsTypedArray() ||
      info[0].As<Napi::TypedArray>().TypedArrayType() != napi_int32_array ||
      info[1].As<Napi::TypedArray>().TypedArrayType() != napi_float64_array) {
    throw wrong(info, 0, "an Int32Array before a Float64Array");
  }
  auto ids = info[0].As<Napi::Int32Array>();
  auto scalars = info[1].As<Napi::Float64Array>();
  self.id_buffer = Napi::Reference<Napi::TypedArray>::New(ids, 1);
  self.scalar_buffer = Napi::Reference<Napi::TypedArray>::New(scalars, 1);
  self.ids = ids.Data();
  self.scalars = scalars.Data();
  self.id_capacity = ids.ElementLength();
  self.scalar_capacity = scalars.ElementLength();
  return info.Env().Undefined();
}

// empty(device, dtype, group, dims): the shape stands in the scalar buffer.
Napi::Value empty(const Info& info) {
  Environment& self = Environment::of(info.Env());
  return Napi::Number::New(
      info.Env(), self.create(integer(info, 0), integer(info, 1), integer(info, 2), integer(info, 3), self.scalars));
}

// view(id, dims, offset in elements): the shape stands in the scalar buffer.
Napi::Value view(const Info& info) {
  Environment& self = Environment::of(info.Env());
  return Napi::Number::New(info.Env(), self.view(integer(info, 0), integer(info, 1), self.scalars, wide(info, 2)));
}

Napi::Value release(const Info& info) {
  Environment::of(info.Env()).release(integer(info, 0));
  return info.Env().Undefined();
}

Napi::Value mark_parameter(const Info& info) {
  Environment::of(info.Env()).tensor(integer(info, 0)).storage->mark_parameter();
  return info.Env().Undefined();
}

size_t element_size(napi_typedarray_type type) {
  switch (type) {
    case napi_int16_array:
    case napi_uint16_array:
      return 2;
    case napi_int32_array:
    case napi_uint32_array:
    case napi_float32_array:
      return 4;
    case napi_float64_array:
    case napi_bigint64_array:
    case napi_biguint64_array:
      return 8;
    default:
      return 1;
  }
}

Napi::Value upload(const Info& info) {
  if (!info[1].IsTypedArray()) throw wrong(info, 1, "a typed array");
  // Plain calls: the wrappers ask the buffer, which may be a SharedArrayBuffer.
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(info.Env(), info[1], &type, &length, &data, nullptr, nullptr) != napi_ok) {
    throw wrong(info, 1, "a typed array that can be read");
  }
  Environment::of(info.Env()).upload(integer(info, 0), data, length * element_size(type));
  return info.Env().Undefined();
}

// mapFile(path for messages, descriptor)
Napi::Value map_file(const Info& info) {
  return Napi::Number::New(info.Env(), Environment::of(info.Env()).map_file(text(info, 0), integer(info, 1)));
}

Napi::Value unmap_file(const Info& info) {
  Environment::of(info.Env()).unmap_file(integer(info, 0));
  return info.Env().Undefined();
}

// load(id, file, offset, dtype, outer, a, b)
Napi::Value load(const Info& info) {
  const int64_t offset = wide(info, 2);
  if (offset < 0) throw wrong(info, 2, "a place in a file");
  Environment::of(info.Env())
      .load(integer(info, 0), integer(info, 1),
            {static_cast<size_t>(offset), static_cast<FileDtype>(integer(info, 3)), wide(info, 4), wide(info, 5),
             wide(info, 6)});
  return info.Env().Undefined();
}

// run(op, tensors, scalars): both counts of what stands in the buffers.
Napi::Value run(const Info& info) {
  Environment& self = Environment::of(info.Env());
  self.run(integer(info, 0), self.ids, integer(info, 1), self.scalars, integer(info, 2));
  return info.Env().Undefined();
}

Napi::Value read(const Info& info) { return Environment::of(info.Env()).read(integer(info, 0)); }

Napi::Value ready(const Info& info) { return Environment::of(info.Env()).ready(integer(info, 0)); }

Napi::Value synchronize(const Info& info) { return Environment::of(info.Env()).synchronize(integer(info, 0)); }

Napi::Value stop(const Info& info) {
  Device::stop_all();
  return info.Env().Undefined();
}

Napi::Value begin_step(const Info& info) {
  return Napi::Boolean::New(info.Env(), Environment::of(info.Env()).begin_step(integer(info, 0)));
}

Napi::Value end_step(const Info& info) {
  Environment::of(info.Env()).end_step(integer(info, 0));
  return info.Env().Undefined();
}

Napi::Value step_report(const Info& info) {
  const StepReport report = Environment::of(info.Env()).step_report(integer(info, 0));
  Napi::Object result = Napi::Object::New(info.Env());
  const auto number = [&](int64_t value) { return Napi::Number::New(info.Env(), static_cast<double>(value)); };
  result.Set("steps", number(report.steps));
  result.Set("replayed", number(report.replayed));
  result.Set("recordedSegments", number(report.recorded_segments));
  result.Set("eagerKernels", number(report.eager_kernels));
  if (report.reason.empty()) {
    result.Set("reason", info.Env().Null());
  } else {
    result.Set("reason", report.reason);
  }
  return result;
}

Napi::Value memory(const Info& info) {
  const MemoryStats stats = Environment::of(info.Env()).device(integer(info, 0))->allocator().stats();
  Napi::Object result = Napi::Object::New(info.Env());
  const auto number = [&](size_t value) { return Napi::Number::New(info.Env(), static_cast<double>(value)); };
  result.Set("live", number(stats.live));
  result.Set("cached", number(stats.cached));
  result.Set("peak", number(stats.peak));
  result.Set("limit", number(stats.limit));
  result.Set("allocations", number(stats.allocations));
  Napi::Object groups = Napi::Object::New(info.Env());
  for (int i = 0; i < kGroupCount; ++i) groups.Set(kGroupNames[i], number(stats.groups[i]));
  result.Set("groups", groups);
  return result;
}

Napi::Value reset_peak(const Info& info) {
  Environment::of(info.Env()).device(integer(info, 0))->allocator().reset_peak();
  return info.Env().Undefined();
}

Napi::Value set_limit(const Info& info) {
  const int64_t bytes = wide(info, 1);
  if (bytes < 0) throw wrong(info, 1, "a number of bytes");
  Environment::of(info.Env()).set_limit(integer(info, 0), static_cast<size_t>(bytes));
  return info.Env().Undefined();
}

Napi::Value describe(const Info& info) {
  return Napi::String::New(info.Env(), Environment::of(info.Env()).device(integer(info, 0))->description());
}

Napi::Value profiling(const Info& info) {
  Environment::of(info.Env()).device(integer(info, 0))->set_profiling(info[1].ToBoolean());
  return info.Env().Undefined();
}

// [op name, seconds, calls] for each op that ran since profiling was switched on.
Napi::Value profile(const Info& info) {
  const auto times = Environment::of(info.Env()).device(integer(info, 0))->profile();
  Napi::Array all = Napi::Array::New(info.Env());
  uint32_t count = 0;
  for (size_t op = 0; op < times.size(); ++op) {
    if (!times[op].calls) continue;
    Napi::Array row = Napi::Array::New(info.Env(), 3);
    row[uint32_t{0}] = Napi::String::New(info.Env(), op_name(static_cast<int>(op)));
    row[uint32_t{1}] = Napi::Number::New(info.Env(), times[op].seconds);
    row[uint32_t{2}] = Napi::Number::New(info.Env(), static_cast<double>(times[op].calls));
    all[count++] = row;
  }
  return all;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Environment(env));
  exports.Set("interfaceVersion", Napi::Number::New(env, LTX_BACKEND_VERSION));
#define LTX_EXPORT(name, function) exports.Set(name, Napi::Function::New<guarded<function>>(env, name))
  LTX_EXPORT("ops", ops);
  LTX_EXPORT("open", open);
  LTX_EXPORT("bind", bind);
  LTX_EXPORT("empty", empty);
  LTX_EXPORT("view", view);
  LTX_EXPORT("release", release);
  LTX_EXPORT("markParameter", mark_parameter);
  LTX_EXPORT("upload", upload);
  LTX_EXPORT("mapFile", map_file);
  LTX_EXPORT("unmapFile", unmap_file);
  LTX_EXPORT("load", load);
  LTX_EXPORT("run", run);
  LTX_EXPORT("read", read);
  LTX_EXPORT("ready", ready);
  LTX_EXPORT("synchronize", synchronize);
  LTX_EXPORT("stop", stop);
  LTX_EXPORT("beginStep", begin_step);
  LTX_EXPORT("endStep", end_step);
  LTX_EXPORT("stepReport", step_report);
  LTX_EXPORT("memory", memory);
  LTX_EXPORT("resetPeak", reset_peak);
  LTX_EXPORT("setLimit", set_limit);
  LTX_EXPORT("describe", describe);
  LTX_EXPORT("profiling", profiling);
  LTX_EXPORT("profile", profile);
#undef LTX_EXPORT
  return exports;
}

}  // namespace
}  // namespace ltx

using ltx::init;
NODE_API_MODULE(ltx_native, init)
