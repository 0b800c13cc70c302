// gemm.h by cuBLASLt, which is opened at run time and never linked: its few functions and values are declared here in
// our own words. They are the same in versions 12 and 13 of the library.
#include <dlfcn.h>
#include <glob.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "common.cuh"
#include "cublaslt.h"
#include "gemm.h"

namespace ltx::cuda {
namespace {

using Status = int;    // 0 is success
using Handle = void*;  // library, product, layout and preference: all opaque
struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  Status state;
  float waves;
  int reserved[4];
};

constexpr int kTypeF32 = 0, kTypeBf16 = 14, kComputeF32 = 68;
enum ProductAttribute {
  kTransposeA = 3,
  kTransposeB = 4,
  kEpilogue = 7,
  kBiasPointer = 8,
  kAuxPointer = 11,
  kAuxStride = 12
};
enum PreferenceAttribute {
  kWorkspaceBytes = 1,
  kReductionSchemes = 3,
  kAlignmentA = 5,
  kAlignmentB,
  kAlignmentC,
  kAlignmentD
};
constexpr uint32_t kReductionNone = 0;
constexpr size_t kWorkspace = size_t{32} << 20;  // what NVIDIA advises for Hopper; 4 MB do elsewhere
constexpr int kWorkspaceSlot = 6;

struct Library {
  std::string path;
  size_t (*GetVersion)();
  const char* (*GetStatusName)(Status);
  Status (*Create)(Handle*);
  Status (*MatmulDescCreate)(Handle*, int compute, int scale);
  Status (*MatmulDescDestroy)(Handle);
  Status (*MatmulDescSetAttribute)(Handle, int attribute, const void*, size_t);
  Status (*MatrixLayoutCreate)(Handle*, int type, uint64_t rows, uint64_t columns, int64_t stride);
  Status (*MatrixLayoutDestroy)(Handle);
  Status (*MatmulPreferenceCreate)(Handle*);
  Status (*MatmulPreferenceDestroy)(Handle);
  Status (*MatmulPreferenceSetAttribute)(Handle, int attribute, const void*, size_t);
  Status (*MatmulAlgoGetHeuristic)(Handle, Handle product, Handle a, Handle b, Handle c, Handle d, Handle preference,
                                   int count, Heuristic*, int* found);
  Status (*Matmul)(Handle, Handle product, const void* alpha, const void* a, Handle, const void* b, Handle,
                   const void* beta, const void* c, Handle, void* d, Handle, const Algorithm*, void* workspace,
                   size_t bytes, cudaStream_t);
};

// Where the library may lie, best first.
std::vector<std::string> candidates() {
  std::vector<std::string> paths;
  if (const char* given = std::getenv("LTX_CUBLASLT")) {
    struct stat status {};
    const bool folder = stat(given, &status) == 0 && S_ISDIR(status.st_mode);
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
      paths.push_back(folder ? std::string(given) + "/" + name : given);
      if (!folder) break;
    }
    return paths;  // whoever names one wants no other
  }
  std::vector<std::string> roots = {"/usr/local/lib", "/usr/lib"};
  if (const char* home = std::getenv("HOME")) roots.insert(roots.begin(), std::string(home) + "/.local/lib");
  for (const char* variable : {"CONDA_PREFIX", "VIRTUAL_ENV"}) {
    if (const char* prefix = std::getenv(variable)) roots.insert(roots.begin(), std::string(prefix) + "/lib");
  }
  for (const char* version : {"13", "12"}) {
    const std::string name = std::string("libcublasLt.so.") + version;
    paths.push_back(name);
    paths.push_back("/usr/local/cuda/lib64/" + name);
    for (const std::string& root : roots) {
      for (const char* packages : {"site-packages", "dist-packages"}) {
        for (const std::string& folder : {std::string("cu13"), std::string("cublas")}) {
          glob_t found{};
          const std::string pattern = root + "/python3*/" + packages + "/nvidia/" + folder + "/lib/" + name;
          if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
            paths.insert(paths.end(), found.gl_pathv, found.gl_pathv + found.gl_pathc);
          globfree(&found);
        }
      }
    }
  }
  return paths;
}

bool load(Library& library, const std::string& path, std::string& why) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    why += std::string(why.empty() ? "" : "; ") + dlerror();
    return false;
  }
  bool complete = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    complete = complete && function;
  };
#define LTX_FIND(name) find(library.name, "cublasLt" #name)
  LTX_FIND(GetVersion);
  LTX_FIND(GetStatusName);
  LTX_FIND(Create);
  LTX_FIND(MatmulDescCreate);
  LTX_FIND(MatmulDescDestroy);
  LTX_FIND(MatmulDescSetAttribute);
  LTX_FIND(MatrixLayoutCreate);
  LTX_FIND(MatrixLayoutDestroy);
  LTX_FIND(MatmulPreferenceCreate);
  LTX_FIND(MatmulPreferenceDestroy);
  LTX_FIND(MatmulPreferenceSetAttribute);
  LTX_FIND(MatmulAlgoGetHeuristic);
  LTX_FIND(Matmul);
#undef LTX_FIND
  if (!complete) why += std::string(why.empty() ? "" : "; ") + path + " is not cuBLASLt 12 or 13";
  library.path = path;
  return complete;
}

// Null with the reason.
const Library* opened(std::string* reason) {
  static std::string why;
  static const Library* const library = []() -> const Library* {
    auto* found = new Library{};
    for (const std::string& path : candidates()) {
      if (load(*found, path, why)) return found;
    }
    delete found;
    return nullptr;
  }();
  if (!library && reason) *reason = why;
  return library;
}

void require(Status status, const char* what) {
  if (status != 0) throw std::runtime_error(std::string(what) + ": " + opened(nullptr)->GetStatusName(status));
}

// The largest power of two up to 256 that divides the address.
uint32_t alignment(const void* pointer) {
  const auto bits = reinterpret_cast<uintptr_t>(pointer) | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

// Everything that the choice of an algorithm depends on.
using Key = std::tuple<int64_t, int64_t, int64_t, int, int, bool, bool, bool, int, bool, uint32_t, uint32_t, uint32_t>;

Key key_of(const Gemm& p) {
  return {p.m,
          p.n,
          p.k,
          p.operands,
          p.result,
          p.transpose_a,
          p.transpose_b,
          p.accumulate,
          static_cast<int>(p.epilogue),
          p.pre != nullptr,
          alignment(p.a),
          alignment(p.b),
          alignment(p.y)};
}

int epilogue_of(const Gemm& p) {
  constexpr int kDefault = 1, kBias = 4, kGelu = 32, kAux = 128, kBiasGradientB = 512;
  switch (p.epilogue) {
    case Epilogue::kNone:
      return kDefault;
    case Epilogue::kBias:
      return kBias;
    case Epilogue::kGelu:
      return kGelu | (p.pre ? kAux : 0);
    case Epilogue::kGeluBias:
      return kGelu | kBias | (p.pre ? kAux : 0);
    case Epilogue::kBiasGradient:
      return kBiasGradientB;
  }
  return kDefault;
}

// LTX_DETERMINISTIC=1: no split over k and no fused bias gradient, so that sums have one order whatever the library
// would rather do.
bool deterministic() {
  static const bool on = [] {
    const char* text = std::getenv("LTX_DETERMINISTIC");
    return text && std::string(text) != "0" && *text;
  }();
  return on;
}

// A problem's descriptors and algorithm. The library is column-major: it computes our result's transpose, y' (n, m) =
// b' a', so what it calls A is our b.
struct Plan {
  Handle product = nullptr, a = nullptr, b = nullptr, y = nullptr;
  Heuristic choice{};
  bool usable = false;
};

class Products {
 public:
  Products() { require(library_.Create(&handle_), "cublasLtCreate"); }

  const Plan& plan(const Gemm& p) {
    const auto [found, fresh] = plans_.try_emplace(key_of(p));
    if (fresh) make(found->second, p);
    return found->second;
  }

  void run(const Call& call, const Gemm& p) {
    const Plan& chosen = plan(p);
    if (!chosen.usable) {
      throw std::runtime_error("cuBLASLt knows no algorithm for (" + std::to_string(p.m) + ", " + std::to_string(p.k) +
                               ") x (" + std::to_string(p.k) + ", " + std::to_string(p.n) + ")");
    }
    if (p.bias) set(chosen.product, kBiasPointer, p.bias);
    if (p.pre) set(chosen.product, kAuxPointer, p.pre);
    void* workspace = chosen.choice.workspace ? scratch<char>(call, kWorkspaceSlot, kWorkspace) : nullptr;
    const float alpha = 1.0f, beta = p.accumulate ? 1.0f : 0.0f;
    require(library_.Matmul(handle_, chosen.product, &alpha, p.b, chosen.a, p.a, chosen.b, &beta, p.y, chosen.y, p.y,
                            chosen.y, &chosen.choice.algorithm, workspace, chosen.choice.workspace, stream(call)),
            "cublasLtMatmul");
  }

 private:
  template <class T>
  void set(Handle product, int attribute, const T& value) {
    require(library_.MatmulDescSetAttribute(product, attribute, &value, sizeof value),
            "cublasLtMatmulDescSetAttribute");
  }

  void make(Plan& plan, const Gemm& p) {
    if (deterministic() && p.epilogue == Epilogue::kBiasGradient) return;
    const auto type = [](LtxDtype dtype) { return dtype == LTX_F32 ? kTypeF32 : kTypeBf16; };
    const auto layout = [&](Handle& made, LtxDtype dtype, int64_t rows, int64_t columns) {
      require(library_.MatrixLayoutCreate(&made, type(dtype), static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(columns), rows),
              "cublasLtMatrixLayoutCreate");
    };
    require(library_.MatmulDescCreate(&plan.product, kComputeF32, kTypeF32), "cublasLtMatmulDescCreate");
    set(plan.product, kTransposeA, int32_t{p.transpose_b});
    set(plan.product, kTransposeB, int32_t{p.transpose_a});
    set(plan.product, kEpilogue, static_cast<int32_t>(epilogue_of(p)));
    if (p.bias) set(plan.product, kBiasPointer, p.bias);
    if (p.pre) {
      set(plan.product, kAuxPointer, p.pre);
      set(plan.product, kAuxStride, p.n);
    }
    layout(plan.a, p.operands, p.transpose_b ? p.k : p.n, p.transpose_b ? p.n : p.k);
    layout(plan.b, p.operands, p.transpose_a ? p.m : p.k, p.transpose_a ? p.k : p.m);
    layout(plan.y, p.result, p.n, p.m);

    Handle preference = nullptr;
    require(library_.MatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    const auto prefer = [&](int attribute, auto value) {
      require(library_.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
              "cublasLtMatmulPreferenceSetAttribute");
    };
    prefer(kWorkspaceBytes, uint64_t{kWorkspace});
    prefer(kAlignmentA, alignment(p.b));
    prefer(kAlignmentB, alignment(p.a));
    prefer(kAlignmentC, alignment(p.y));
    prefer(kAlignmentD, alignment(p.y));
    if (deterministic()) prefer(kReductionSchemes, kReductionNone);
    int found = 0;
    const Status status = library_.MatmulAlgoGetHeuristic(handle_, plan.product, plan.a, plan.b, plan.y, plan.y,
                                                          preference, 1, &plan.choice, &found);
    plan.usable = status == 0 && found > 0 && plan.choice.state == 0;
    library_.MatmulPreferenceDestroy(preference);
  }

  const Library& library_ = *opened(nullptr);
  Handle handle_ = nullptr;
  std::map<Key, Plan> plans_;
};

// One for each GPU; used on its worker thread only. Never destroyed: the driver may be gone by then.
Products& products(const Call& call) {
  static std::mutex mutex;
  static auto* const all = new std::map<const Context*, Products*>;
  std::lock_guard lock(mutex);
  Products*& own = (*all)[&context(call)];
  if (!own) own = new Products;
  return *own;
}

}  // namespace

bool open_cublaslt(char* reason, size_t size) {
  std::string why;
  if (opened(&why)) return true;
  std::snprintf(reason, size,
                "no cuBLASLt 13 or 12: install CUDA's runtime libraries or `pip install nvidia-cublas`, or name the "
                "library or its folder in LTX_CUBLASLT (%s)",
                why.c_str());
  return false;
}

size_t cublaslt_version() {
  const Library* library = opened(nullptr);
  return library ? library->GetVersion() : 0;
}

bool gemm_supports(const Call& call, const Gemm& problem) { return products(call).plan(problem).usable; }

void gemm(const Call& call, const Gemm& problem) { products(call).run(call, problem); }

}  // namespace ltx::cuda
