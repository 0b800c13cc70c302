// Division by a number that the host knows.
#pragma once
#include "target.cuh"

namespace ltx::cuda {

// x / divisor and x % divisor for 0 <= x < 2^62 in a few instructions; a division of 64-bit integers is a call, around
// which registers are spilled.
struct Divisor {
  int64_t value;
  uint64_t factor;  // 2^64 / value, rounded down (that of 1 is one less)
  Divisor() = default;
  explicit Divisor(int64_t value) : value(value), factor(value ? ~uint64_t{0} / static_cast<uint64_t>(value) : 0) {}
};

LTX_HD inline int64_t operator/(int64_t x, const Divisor& divisor) {
  using Wide = unsigned __int128;
  const auto product = static_cast<Wide>(static_cast<uint64_t>(x)) * divisor.factor;
  const int64_t quotient = static_cast<int64_t>(static_cast<uint64_t>(product >> 64));  // or one less than that
  return x - quotient * divisor.value >= divisor.value ? quotient + 1 : quotient;
}
LTX_HD inline int64_t operator%(int64_t x, const Divisor& divisor) { return x - x / divisor * divisor.value; }

}  // namespace ltx::cuda
