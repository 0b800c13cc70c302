// Weights of a checkpoint where they lie on disk, and their way from there into a device's memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "backend.h"

namespace ltx {

// Element types in files; lib/native.ts holds the same order.
enum FileDtype { kFileF32 = 0, kFileBf16 = 1, kFileF16 = 2, kFileF8E4M3 = 3, kFileF8E5M2 = 4, kFileDtypeCount };
size_t file_dtype_size(FileDtype dtype);

// An open file mapped for reading; what has its path by now may be another. Throws std::runtime_error with the reason
// when it can't be.
class MappedFile {
 public:
  MappedFile(const std::string& path, int descriptor);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const char* data() const { return data_; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }
  // Throws when the file has become shorter: the process would die of reading what is gone.
  void check_size() const;
  // Takes pages that were read out of this process: they count as its memory.
  void forget(size_t offset, size_t bytes) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  const char* data_ = nullptr;
  size_t size_ = 0;
};

// A tensor (outer, a, b) in a file, which is (outer, b, a) in memory.
struct FileTensor {
  size_t offset;
  FileDtype dtype;
  int64_t outer, a, b;
  size_t bytes() const { return static_cast<size_t>(outer * a * b) * file_dtype_size(dtype); }
};

// Converts it to `dtype` (f32, or bf16 rounded to nearest even) in a device's memory, a few megabytes at a time.
void load_tensor(const LtxBackend* backend, const MappedFile& file, const FileTensor& tensor, void* target,
                 LtxDtype dtype);

}  // namespace ltx
