// What failures leave behind. A task that fails has not made what it was to write: whoever depends on that hears of the
// failure, nobody else does.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace ltx {

// Why an op failed, in the words of the op. The device's worker makes it and changes it.
struct Failure {
  const char* code;  // LtxError's
  std::string message;
  bool told = false;  // an await was rejected with it
};
using FailurePtr = std::shared_ptr<Failure>;

// Which bytes of a storage were not made, because their writer failed or was left out for the failure of another. Tasks
// keep it as long as they are queued; only the device's worker looks into it. A storage that takes over freed memory
// has a new one.
class Health {
 public:
  // The failure for which some byte of [begin, end) is missing; null when all are there.
  FailurePtr find(const char* begin, const char* end) const {
    for (const Missing& part : missing_) {
      if (part.begin < end && begin < part.end) return part.failure;
    }
    return nullptr;
  }

  // The bytes were not made.
  void mark(const char* begin, const char* end, FailurePtr failure) {
    written(begin, end);
    if (begin < end) missing_.push_back({begin, end, std::move(failure)});
  }

  // The bytes were written, as they stand in the copy if one is kept on the host.
  void written(const char* begin, const char* end, std::shared_ptr<const char[]> copy = nullptr) {
    heal(begin, end);
    if (copy || (copy_begin_ < end && begin < copy_end_)) {
      copy_ = std::move(copy);
      copy_begin_ = begin;
      copy_end_ = end;
    }
  }
  // Where the host has the same bytes as [begin, end); null when it doesn't.
  const char* copy(const char* begin, const char* end) const {
    return copy_ && copy_begin_ <= begin && end <= copy_end_ ? copy_.get() + (begin - copy_begin_) : nullptr;
  }

  bool whole() const { return missing_.empty(); }

 private:
  void heal(const char* begin, const char* end) {
    if (missing_.empty()) return;
    std::vector<Missing> rest;
    for (const Missing& part : missing_) {
      if (part.begin < begin) rest.push_back({part.begin, part.end < begin ? part.end : begin, part.failure});
      if (end < part.end) rest.push_back({part.begin > end ? part.begin : end, part.end, part.failure});
    }
    missing_ = std::move(rest);
  }

  struct Missing {
    const char *begin, *end;
    FailurePtr failure;
  };
  std::vector<Missing> missing_;
  const char *copy_begin_ = nullptr, *copy_end_ = nullptr;
  std::shared_ptr<const char[]> copy_;
};

}  // namespace ltx
