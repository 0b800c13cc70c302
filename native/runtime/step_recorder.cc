#include "step_recorder.h"

#include <algorithm>
#include <utility>

#include "device.h"

namespace ltx {
namespace {

// A step is recorded when it comes for the third time: in the first, backends choose algorithms and grow their scratch
// memory, the second shows which calls stay the same.
constexpr int kSeenBeforeRecording = 3;
// Launching a recording costs as much as a few kernels.
constexpr size_t kShortestSegment = 8;
// Shapes may alternate, and so may addresses.
constexpr size_t kPlans = 8;
constexpr size_t kLongestStep = 65536;
constexpr int kMostFailures = 3;

bool same_place(const LtxTensor& a, const LtxTensor& b) {
  return a.data == b.data && a.cache == b.cache && (a.dims < 0) == (b.dims < 0);
}

bool same_shape(const LtxTensor& a, const LtxTensor& b) {
  return a.dims == b.dims && a.dtype == b.dtype && std::equal(a.shape, a.shape + std::max(a.dims, 0), b.shape);
}

// Which operand of a kernel is not what it was, or -1.
int changed_operand(const Task& a, const Task& b) {
  if (a.op < 0) return -1;
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    if (!same_place(a.tensors[i], b.tensors[i]) || !same_shape(a.tensors[i], b.tensors[i])) return static_cast<int>(i);
  }
  return -1;
}

bool same_ops(const std::vector<Task>& a, const std::vector<Task>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Task& x, const Task& y) { return x.op == y.op && x.tensors.size() == y.tensors.size(); });
}

// A replay uses the copies beside a parameter without looking at its version: nothing in it may change that.
bool writes_parameter(const Task& task) {
  return std::any_of(task.tensors.begin() + task.first_output, task.tensors.begin() + task.end_output,
                     [](const LtxTensor& tensor) { return tensor.cache != nullptr; });
}

// A replay does not look at values that are known on the host, so it would not see an index that is outside its table.
bool reads_indices(const Task& task) {
  return std::any_of(task.tensors.begin(), task.tensors.end(),
                     [](const LtxTensor& tensor) { return tensor.dims >= 0 && tensor.dtype == LTX_I32; });
}

}  // namespace

StepRecorder::StepRecorder(Device& device, Client& client) : device_(device), client_(client) {}

StepRecorder::~StepRecorder() {
  for (auto& plan : plans_) drop(*plan);
}

void StepRecorder::begin() {
  inside_ = true;
  collecting_ = true;
  report_.eager_kernels = 0;
  report_.reason.clear();
}

void StepRecorder::add(Task task) {
  tasks_.push_back(std::move(task));
  if (tasks_.size() == kLongestStep) interrupt("a step of more than " + std::to_string(kLongestStep) + " kernels");
}

void StepRecorder::interrupt(const std::string& reason) {
  if (!collecting_) return;
  collecting_ = false;
  refuse(reason);
  run_eagerly(0, tasks_.size());
  tasks_.clear();
}

void StepRecorder::end() {
  if (!inside_) return;
  if (collecting_) {
    collecting_ = false;
    // What is dropped, and what times each kernel by itself, can't be one launch.
    if (client_.cancelled() || device_.dropping_) {
      run_eagerly(0, tasks_.size());
    } else if (device_.profiling()) {
      refuse("kernels are being measured");
      run_eagerly(0, tasks_.size());
    } else {
      run_collected();
    }
    tasks_.clear();
  }
  inside_ = false;
  ++report_.steps;
  if (report_.reason.empty()) ++report_.replayed;
  publish();
}

void StepRecorder::run_collected() {
  Plan& plan = recognize();
  plan.used = report_.steps;
  ++plan.seen;
  if (plan.seen >= kSeenBeforeRecording && !plan.cut) cut(plan);
  size_t done = 0;
  for (Segment& segment : plan.segments) {
    run_eagerly(done, segment.begin);
    if (!run_segment(segment)) run_eagerly(segment.begin, segment.end);
    done = segment.end;
  }
  run_eagerly(done, tasks_.size());
  if (plan.seen < kSeenBeforeRecording) {
    refuse("seen " + std::to_string(plan.seen) + " times; recorded at the third");
  } else if (plan.segments.empty()) {
    refuse("no " + std::to_string(kShortestSegment) + " kernels in a row stay the same");
  }
  if (plan.calls.empty()) plan.calls = std::move(tasks_);
}

StepRecorder::Plan& StepRecorder::recognize() {
  Plan* nearest = nullptr;
  size_t fewest = 0;
  std::string moved;
  for (auto& plan : plans_) {
    if (!same_ops(plan->calls, tasks_)) continue;
    size_t count = 0;
    std::string first;
    for (size_t i = 0; i < tasks_.size(); ++i) {
      if (plan->varies[i]) continue;
      const int operand = changed_operand(plan->calls[i], tasks_[i]);
      if (operand < 0) continue;
      if (count++ > 0) continue;
      const bool shape = !same_shape(plan->calls[i].tensors[operand], tasks_[i].tensors[operand]);
      first = "operand " + std::to_string(operand) + " of " + op_name(tasks_[i].op) +
              (shape ? " has another shape" : " moved");
    }
    if (!nearest || count < fewest) {
      nearest = plan.get();
      fewest = count;
      moved = first;
    }
    if (count == 0) break;
  }
  // Addresses that never settle are given up, if they are few.
  unknown_ = nearest && fewest == 0 ? 0 : unknown_ + 1;
  const bool settles = fewest == 0 || (unknown_ > static_cast<int>(kPlans) && fewest <= tasks_.size() / 2);
  if (nearest && settles) {
    for (size_t i = 0; i < tasks_.size(); ++i) {
      if (nearest->varies[i]) continue;
      const Task& before = nearest->calls[i];
      if (before.scalars == tasks_[i].scalars && changed_operand(before, tasks_[i]) < 0) continue;
      nearest->varies[i] = true;
      nearest->cut = false;
    }
    return *nearest;
  }
  // What varied elsewhere varies here too.
  auto fresh = std::make_unique<Plan>();
  fresh->varies = nearest ? nearest->varies : std::vector<bool>(tasks_.size());
  refuse(!nearest ? (plans_.empty() ? "the first step" : "its kernels are not those of an earlier step") : moved);
  if (plans_.size() == kPlans) {
    const auto oldest =
        std::min_element(plans_.begin(), plans_.end(), [](const auto& a, const auto& b) { return a->used < b->used; });
    drop(**oldest);
    plans_.erase(oldest);
  }
  plans_.push_back(std::move(fresh));
  return *plans_.back();
}

// Runs of recordable calls become segments; those that stay as they are keep their recordings.
void StepRecorder::cut(Plan& plan) {
  std::vector<Segment> before = std::exchange(plan.segments, {});
  const auto recordable = [&](size_t i) {
    return tasks_[i].op >= 0 && !plan.varies[i] && !writes_parameter(tasks_[i]) && !reads_indices(tasks_[i]);
  };
  for (size_t i = 0; i < tasks_.size(); ++i) {
    const size_t begin = i;
    while (i < tasks_.size() && recordable(i)) ++i;
    if (i - begin < kShortestSegment) continue;
    const auto known =
        std::find_if(before.begin(), before.end(), [&](const Segment& s) { return s.begin == begin && s.end == i; });
    if (known != before.end()) {
      plan.segments.push_back(std::exchange(*known, {}));
      continue;
    }
    Segment segment;
    segment.begin = begin;
    segment.end = i;
    for (size_t call = begin; call < i; ++call) {
      for (size_t operand = 0; operand < tasks_[call].tensors.size(); ++operand) {
        if (tasks_[call].tensors[operand].cache) segment.uses.push_back({call, operand});
      }
    }
    const auto cache = [&](const Segment::Use& use) { return tasks_[use.call].tensors[use.operand].cache; };
    std::stable_sort(segment.uses.begin(), segment.uses.end(),
                     [&](const auto& a, const auto& b) { return std::less<>()(cache(a), cache(b)); });
    plan.segments.push_back(std::move(segment));
  }
  for (Segment& segment : before) drop(segment);
  plan.cut = true;
}

void StepRecorder::run_eagerly(size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) {
    if (tasks_[i].op >= 0) ++report_.eager_kernels;
    device_.run(tasks_[i]);
    device_.finish(tasks_[i]);
  }
}

// Whether the segment has run.
bool StepRecorder::run_segment(Segment& segment) {
  // Each kernel then has to see for itself whether what it reads is there.
  for (size_t i = segment.begin; i < segment.end; ++i) {
    const auto& health = tasks_[i].health;
    const bool whole = std::all_of(health.begin(), health.end(), [](const auto& h) { return !h || h->whole(); });
    if (!whole) return refuse("a kernel failed before");
  }
  if (segment.failures >= kMostFailures) return refuse(segment.failure);
  if (!refresh(segment)) return refuse("a parameter changes in mid-step");
  const LtxBackend* backend = device_.backend();
  const bool fresh = !segment.recording;
  if (fresh && !record(segment)) return false;
  char reason[512] = "no reason given";
  if (backend->replay(backend->context, segment.recording, reason, sizeof reason) != 0) {
    return fail(segment, reason);
  }
  if (!fresh) segment.failures = 0;
  if (fresh) refuse("recorded in this step");
  for (size_t i = segment.begin; i < segment.end; ++i) {
    device_.conclude(tasks_[i], nullptr);
    device_.finish(tasks_[i]);
  }
  return true;
}

// Brings the copies beside the segment's parameters up to date; false if one is written within it.
bool StepRecorder::refresh(const Segment& segment) {
  const LtxBackend* backend = device_.backend();
  const LtxTensor* last = nullptr;
  for (const auto& [call, operand] : segment.uses) {
    const LtxTensor& tensor = tasks_[call].tensors[operand];
    if (last && last->cache == tensor.cache) {
      if (last->version != tensor.version) return false;
    } else {
      backend->refresh(backend->context, &tensor);
    }
    last = &tensor;
  }
  return true;
}

bool StepRecorder::record(Segment& segment) {
  const LtxBackend* backend = device_.backend();
  char reason[512] = "no reason given";
  if (backend->record_begin(backend->context, reason, sizeof reason) != 0) return fail(segment, reason);
  char error[1024] = "";
  bool failed = false;
  for (size_t i = segment.begin; i < segment.end && !failed; ++i)
    failed = device_.launch(tasks_[i], error, sizeof error) != 0;
  segment.recording = backend->record_end(backend->context, reason, sizeof reason);
  if (!failed && segment.recording) return true;
  // Nothing has run: the kernel that fails will do so again, and be reported.
  return fail(segment, failed ? error : reason);
}

// After a few failures in a row a segment is left alone.
bool StepRecorder::fail(Segment& segment, const std::string& reason) {
  drop(segment);
  ++segment.failures;
  segment.failure = reason;
  return refuse(reason);
}

// Keeps the first reason of a step.
bool StepRecorder::refuse(const std::string& reason) {
  if (report_.reason.empty()) report_.reason = reason;
  return false;
}

void StepRecorder::drop(Segment& segment) {
  const LtxBackend* backend = device_.backend();
  if (segment.recording) backend->free_recording(backend->context, segment.recording);
  segment.recording = nullptr;
}

void StepRecorder::drop(Plan& plan) {
  for (Segment& segment : plan.segments) drop(segment);
}

void StepRecorder::forget(const LtxCache* cache) {
  const auto uses = [&](const Plan& plan) {
    return std::any_of(plan.calls.begin(), plan.calls.end(), [&](const Task& task) {
      return std::any_of(task.tensors.begin(), task.tensors.end(),
                         [&](const LtxTensor& tensor) { return tensor.cache == cache; });
    });
  };
  std::erase_if(plans_, [&](auto& plan) {
    if (!uses(*plan)) return false;
    drop(*plan);
    return true;
  });
  publish();
}

void StepRecorder::publish() {
  report_.recorded_segments = 0;
  for (const auto& plan : plans_) {
    for (const Segment& segment : plan->segments) report_.recorded_segments += segment.recording != nullptr;
  }
  client_.set_step_report(report_);
}

}  // namespace ltx
