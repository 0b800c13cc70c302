// Replays training steps. A step of fixed shapes queues the same kernels on the same addresses each time: recorded by
// the backend (a CUDA graph), hundreds of them are launched as one.
//
// Between its marks a step's tasks are collected. What earlier steps did tells which of them stay the same: runs of
// those are recorded and then replayed, the rest (uploads, random numbers of a step, the optimizer) runs as ever
// between them, in the order in which it was queued.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend.h"

namespace ltx {

class Client;
class Device;
struct Task;

// How replaying goes; what is not a count over all steps is about the last one.
struct StepReport {
  int64_t steps = 0;
  int64_t replayed = 0;           // steps of which every recordable run was replayed
  int64_t recorded_segments = 0;  // recordings that are kept
  int64_t eager_kernels = 0;      // launched one by one
  std::string reason;             // why it was not replayed; empty when it was
};

// One client's steps. Lives on the device's worker thread.
class StepRecorder {
 public:
  StepRecorder(Device& device, Client& client);
  ~StepRecorder();

  void begin();
  // Whether tasks are to be handed to `add`.
  bool collecting() const { return collecting_; }
  void add(Task task);
  // Runs what was collected; the rest of this step is not collected.
  void interrupt(const std::string& reason);
  void end();
  // Drops the recordings that use what is kept beside a parameter.
  void forget(const LtxCache* cache);

 private:
  // A run of calls that are replayed as one.
  struct Segment {
    size_t begin = 0, end = 0;
    // Where parameters are used, those of one parameter behind each other.
    struct Use {
      size_t call, operand;
    };
    std::vector<Use> uses;
    void* recording = nullptr;
    int failures = 0;  // to record or replay it, in a row
    std::string failure;
  };
  // A step that was seen.
  struct Plan {
    std::vector<Task> calls;   // as they were when it was first seen
    std::vector<bool> varies;  // calls that were seen to differ: always run one by one
    std::vector<Segment> segments;
    bool cut = false;  // whether segments are those of varies
    int seen = 0;
    int64_t used = 0;  // the last step that was this one
  };

  void run_collected();
  Plan& recognize();
  void cut(Plan& plan);
  void run_eagerly(size_t begin, size_t end);
  bool run_segment(Segment& segment);
  bool refresh(const Segment& segment);
  bool record(Segment& segment);
  bool refuse(const std::string& reason);
  bool fail(Segment& segment, const std::string& reason);
  void drop(Segment& segment);
  void drop(Plan& plan);
  void publish();

  Device& device_;
  Client& client_;
  std::vector<Task> tasks_;
  std::vector<std::unique_ptr<Plan>> plans_;
  StepReport report_;
  bool collecting_ = false, inside_ = false;
  int unknown_ = 0;  // steps in a row that were like none before
};

}  // namespace ltx
