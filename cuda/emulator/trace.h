// Calls written to a file, to be made again by replay.cc under a sanitizer or from changed sources.
//
// LTX_EMULATOR_TRACE names the file, to which every process of a test suite adds. A call is kept when it runs an
// instance of a kernel that no kept call ran before, or fewer than four when it is small: a few megabytes in which
// every kernel is.
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "../../native/runtime/backend.h"

namespace ltx::cuda {

// Whether this process writes a trace. Throws std::runtime_error when its file can't be written.
bool tracing();
// The kernels of the table, each of which notes its calls.
const LtxKernel* traced_kernels();
// What the call that is under way has launched.
void note_kernel(const char* name, const void* kernel);

// A call as it stands in a file: every operand as it was before and after. Operands that are the same memory share a
// block.
struct TracedCall {
  int32_t op;
  std::string kernels;              // the names of those that it launched, by blanks
  std::vector<uint64_t> instances;  // their places in the library
  std::vector<double> scalars;
  std::vector<LtxTensor> tensors;                // data is the block's number + 1
  std::vector<uint8_t> parameter;                // by tensor: whether it had a cache
  std::vector<std::vector<char>> before, after;  // by block
};
void write(std::FILE* file, const TracedCall& call);
// False at the end of the file.
bool read(std::FILE* file, TracedCall& call);

}  // namespace ltx::cuda
