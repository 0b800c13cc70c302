#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace ltx {
namespace {

constexpr int64_t kPiece = int64_t{1} << 20;  // elements that are converted at a time

// --- What is in a file as f32. Tensors lie at any byte.

template <class T>
T read_bits(const char* p) {
  T bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}
float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float from_half(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3FFu;
  if (exponent == 31) return from_bits(sign | 0x7F800000u | mantissa << 13);
  if (exponent) return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
  const float value = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -value : value;
}

// Four bits of exponent, three of mantissa, no infinities; NaN has all bits set.
std::array<float, 256> make_e4m3() {
  std::array<float, 256> table;
  for (int bits = 0; bits < 256; ++bits) {
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    float value = exponent ? std::ldexp(static_cast<float>(8 + mantissa), exponent - 10)
                           : std::ldexp(static_cast<float>(mantissa), -9);
    if (exponent == 15 && mantissa == 7) value = from_bits(0x7FC00000u);
    table[bits] = bits & 128 ? -value : value;
  }
  return table;
}

struct F32 {
  static constexpr size_t kSize = 4;
  float operator()(const char* p) const { return read_bits<float>(p); }
};
struct Bf16 {
  static constexpr size_t kSize = 2;
  float operator()(const char* p) const { return from_bits(static_cast<uint32_t>(read_bits<uint16_t>(p)) << 16); }
};
struct F16 {
  static constexpr size_t kSize = 2;
  float operator()(const char* p) const { return from_half(read_bits<uint16_t>(p)); }
};
struct F8E4M3 {
  static constexpr size_t kSize = 1;
  const std::array<float, 256> values = make_e4m3();
  float operator()(const char* p) const { return values[static_cast<uint8_t>(*p)]; }
};
struct F8E5M2 {  // the upper byte of f16
  static constexpr size_t kSize = 1;
  float operator()(const char* p) const { return from_half(static_cast<uint32_t>(static_cast<uint8_t>(*p)) << 8); }
};

// --- In memory

void write(float& to, float value) { to = value; }
void write(uint16_t& to, float value) {
  uint32_t u;
  std::memcpy(&u, &value, sizeof u);
  const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
  to = static_cast<uint16_t>((u & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}

template <class From, class To>
void convert(const From& from, const char* source, To* to, int64_t outer, int64_t a, int64_t b) {
  if (a == 1 || b == 1) {
    const int64_t count = outer * a * b;
    for (int64_t i = 0; i < count; ++i) write(to[i], from(source + i * From::kSize));
    return;
  }
  for (int64_t o = 0; o < outer; ++o, source += a * b * From::kSize) {
    for (int64_t j = 0; j < b; ++j, to += a) {
      for (int64_t i = 0; i < a; ++i) write(to[i], from(source + (i * b + j) * From::kSize));
    }
  }
}

template <class From>
void convert(const From& from, const char* source, void* to, LtxDtype dtype, int64_t outer, int64_t a, int64_t b) {
  if (dtype == LTX_BF16) return convert(from, source, static_cast<uint16_t*>(to), outer, a, b);
  convert(from, source, static_cast<float*>(to), outer, a, b);
}

void convert(FileDtype type, const char* source, void* to, LtxDtype dtype, int64_t outer, int64_t a, int64_t b) {
  switch (type) {
    case kFileF32:
      return convert(F32{}, source, to, dtype, outer, a, b);
    case kFileBf16:
      return convert(Bf16{}, source, to, dtype, outer, a, b);
    case kFileF16:
      return convert(F16{}, source, to, dtype, outer, a, b);
    case kFileF8E4M3: {
      static const F8E4M3 from;
      return convert(from, source, to, dtype, outer, a, b);
    }
    default:
      return convert(F8E5M2{}, source, to, dtype, outer, a, b);
  }
}

bool same(FileDtype type, LtxDtype dtype) {
  return (type == kFileF32 && dtype == LTX_F32) || (type == kFileBf16 && dtype == LTX_BF16);
}

}  // namespace

size_t file_dtype_size(FileDtype dtype) {
  return dtype == kFileF32 ? 4 : dtype == kFileBf16 || dtype == kFileF16 ? 2 : 1;
}

MappedFile::MappedFile(const std::string& path, int descriptor) : path_(path) {
  const auto fail = [&](const char* what) {
    const std::string reason = std::strerror(errno);
    if (descriptor_ >= 0) close(descriptor_);
    throw std::runtime_error("cannot " + std::string(what) + " " + path + ": " + reason);
  };
  descriptor_ = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (descriptor_ < 0) fail("open");
  struct stat status {};
  if (fstat(descriptor_, &status) != 0) fail("read");
  size_ = static_cast<size_t>(status.st_size);
  if (!size_) return;  // nothing to map
  void* const mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor_, 0);
  if (mapped == MAP_FAILED) fail("map");
  data_ = static_cast<const char*>(mapped);
  madvise(mapped, size_, MADV_SEQUENTIAL);
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<char*>(data_), size_);
  close(descriptor_);
}

void MappedFile::check_size() const {
  struct stat status {};
  if (fstat(descriptor_, &status) == 0 && static_cast<size_t>(status.st_size) >= size_) return;
  throw std::runtime_error(path_ + " became shorter while it was read; is it being written?");
}

void MappedFile::forget(size_t offset, size_t bytes) const {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), begin = offset / page * page;
  madvise(const_cast<char*>(data_) + begin, std::min(size_, offset + bytes) - begin, MADV_DONTNEED);
}

void load_tensor(const LtxBackend* backend, const MappedFile& file, const FileTensor& tensor, void* target,
                 LtxDtype dtype) {
  file.check_size();
  // Without axes to change, any cut will do.
  const bool flat = tensor.a == 1 || tensor.b == 1;
  const int64_t rows = flat ? tensor.outer * tensor.a * tensor.b : tensor.outer;
  const int64_t a = flat ? 1 : tensor.a, b = flat ? 1 : tensor.b;
  const int64_t at_once = std::min(rows, std::max<int64_t>(1, kPiece / (a * b)));
  const size_t from_row = static_cast<size_t>(a * b) * file_dtype_size(tensor.dtype);
  const size_t to_row = static_cast<size_t>(a * b) * (dtype == LTX_BF16 ? 2 : 4);
  const bool as_it_lies = flat && same(tensor.dtype, dtype);
  std::vector<char> buffer(as_it_lies ? 0 : static_cast<size_t>(at_once) * to_row);
  for (int64_t row = 0; row < rows; row += at_once) {
    const int64_t count = std::min(at_once, rows - row);
    const size_t offset = tensor.offset + static_cast<size_t>(row) * from_row;
    const char* values = file.data() + offset;
    if (!as_it_lies) {
      convert(tensor.dtype, values, buffer.data(), dtype, count, a, b);
      values = buffer.data();
    }
    char error[1024] = "";
    if (backend->copy_in(backend->context, static_cast<char*>(target) + static_cast<size_t>(row) * to_row, values,
                         static_cast<size_t>(count) * to_row, error, sizeof error) != 0) {
      throw std::runtime_error(error);
    }
    file.forget(offset, static_cast<size_t>(count) * from_row);
  }
}

}  // namespace ltx
