// The binding: a table of functions over Environment. Arguments are checked by lib/native.ts and lib/ops; what reaches
// this file is positional and trusted, but a disposed or unknown tensor still ends in an error, never in a crash.
#include <napi.h>

#include "environment.h"

namespace ltx {
namespace {

using Info = Napi::CallbackInfo;

int integer(const Info& info, int i) { return info[i].As<Napi::Number>().Int32Value(); }

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

Napi::Value open(const Info& info) {
  try {
    return Napi::Number::New(info.Env(),
                             Environment::of(info.Env()).open(info[0].As<Napi::String>(), integer(info, 1)));
  } catch (const std::runtime_error& error) {
    throw Napi::Error::New(info.Env(), error.what());
  }
}

Napi::Value bind(const Info& info) {
  Environment& self = Environment::of(info.Env());
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
  return Napi::Number::New(info.Env(),
                           self.create(integer(info, 0), static_cast<LtxDtype>(integer(info, 1)),
                                       static_cast<MemoryGroup>(integer(info, 2)), integer(info, 3), self.scalars));
}

// view(id, dims, offset in elements): the shape stands in the scalar buffer.
Napi::Value view(const Info& info) {
  Environment& self = Environment::of(info.Env());
  return Napi::Number::New(
      info.Env(), self.view(integer(info, 0), integer(info, 1), self.scalars, info[2].As<Napi::Number>().Int64Value()));
}

Napi::Value release(const Info& info) {
  Environment::of(info.Env()).release(integer(info, 0));
  return info.Env().Undefined();
}

Napi::Value mark_parameter(const Info& info) {
  Environment::of(info.Env()).tensor(integer(info, 0)).storage->mark_parameter();
  return info.Env().Undefined();
}

Napi::Value upload(const Info& info) {
  auto array = info[1].As<Napi::TypedArray>();
  const char* data = static_cast<char*>(array.ArrayBuffer().Data()) + array.ByteOffset();
  Environment::of(info.Env()).upload(integer(info, 0), data, array.ByteLength());
  return info.Env().Undefined();
}

Napi::Value map_file(const Info& info) {
  try {
    return Napi::Number::New(info.Env(), Environment::of(info.Env()).map_file(info[0].As<Napi::String>()));
  } catch (const std::runtime_error& error) {
    throw Napi::Error::New(info.Env(), error.what());
  }
}

Napi::Value unmap_file(const Info& info) {
  Environment::of(info.Env()).unmap_file(integer(info, 0));
  return info.Env().Undefined();
}

// load(id, file, offset, dtype, outer, a, b)
Napi::Value load(const Info& info) {
  const auto wide = [&](int i) { return info[i].As<Napi::Number>().Int64Value(); };
  Environment::of(info.Env())
      .load(integer(info, 0), integer(info, 1),
            {static_cast<size_t>(wide(2)), static_cast<FileDtype>(integer(info, 3)), wide(4), wide(5), wide(6)});
  return info.Env().Undefined();
}

// run(op, tensors, scalars): both counts of what stands in the buffers.
Napi::Value run(const Info& info) {
  Environment& self = Environment::of(info.Env());
  self.run(integer(info, 0), self.ids, integer(info, 1), self.scalars, integer(info, 2));
  return info.Env().Undefined();
}

Napi::Value read(const Info& info) { return Environment::of(info.Env()).read(integer(info, 0)); }

Napi::Value synchronize(const Info& info) { return Environment::of(info.Env()).synchronize(integer(info, 0)); }

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
  const double bytes = info[1].As<Napi::Number>().DoubleValue();
  Environment::of(info.Env()).set_limit(integer(info, 0), static_cast<size_t>(bytes));
  return info.Env().Undefined();
}

Napi::Value describe(const Info& info) {
  return Napi::String::New(info.Env(), Environment::of(info.Env()).device(integer(info, 0))->description());
}

Napi::Value profiling(const Info& info) {
  Environment::of(info.Env()).device(integer(info, 0))->set_profiling(info[1].As<Napi::Boolean>());
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
#define LTX_EXPORT(name, function) exports.Set(name, Napi::Function::New<function>(env, name))
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
  LTX_EXPORT("synchronize", synchronize);
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
