// Blocks, fibers, and the scheduler that changes between them. x86-64 Linux.
//
// The order in which threads run is the environment variable LTX_EMULATOR_ORDER: 0 first come, first served; odd: any
// thread that can run, at random; even: one warp runs as far as it can, warps ranked anew at each barrier, which is
// the greatest distance that can come between them and shows a barrier missing behind the last read of a buffer.
// LTX_EMULATOR_THREADS: blocks that run at once.
#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define LTX_ASAN 1
#else
#define LTX_ASAN 0
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define LTX_TSAN 1
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#else
#define LTX_TSAN 0
#endif

namespace ltx::emulator {

constinit thread_local Position position __attribute__((tls_model("initial-exec")));

namespace {

// The scheduler's own memory is shared by all fibers of a block and says nothing about the kernel.
struct Unwatched {
#if LTX_TSAN
  Unwatched() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
#else
  Unwatched() {}
#endif
};

constexpr size_t kStack = size_t{256} << 10;
constexpr size_t kMostShared = size_t{99} << 10;  // a block's on sm_86 and sm_89, the least of the chips we build for
constexpr uint32_t kMostThreads = 1024;

struct Copy {
  char* shared;
  const char* global;
  int bytes;
  bool valid;
  int group;
};

enum State : uint8_t { kReady, kAtBarrier, kInWarp, kDone };

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  uint3 thread{};
  int linear = 0, lane = 0, warp = 0;
  State state = kReady;
  const char* where = "its beginning";
  void* argument = nullptr;
  std::vector<Copy> copies;
  int group = 0;  // the one that is open
#if LTX_ASAN
  void* fake_stack = nullptr;
#endif
#if LTX_TSAN
  void* tsan = nullptr;
#endif
};

struct Warp {
  uint32_t arrived = 0, mask = 0;
  const char* operation = nullptr;
  uint32_t meetings = 0;
  int tag[2] = {};
  int ready[32], ready_count = 0, rank = 0;
};

struct Block {
  const char* kernel = "";
  const std::function<void()>* body = nullptr;
  dim3 size, grid;
  uint3 index{};
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::deque<int> ready;  // orders 0 and odd
  uint64_t ready_ranks = 0;
  std::vector<int> warp_of_rank;
  int live = 0, at_barrier = 0;
  uint32_t barriers = 0;
  uint64_t random = 1;
  std::unordered_map<const void*, std::unique_ptr<void, decltype(&std::free)>> shared;
  size_t shared_bytes = 0;
  std::unique_ptr<void, decltype(&std::free)> dynamic{nullptr, &std::free};
  std::vector<char*> stacks;  // kept for the next block, as the fibers are
  void* launcher_stack_pointer = nullptr;
#if LTX_ASAN
  void* launcher_fake_stack = nullptr;
  const void* launcher_stack = nullptr;
  size_t launcher_stack_size = 0;
#endif
#if LTX_TSAN
  void* launcher_tsan = nullptr;
  int start_tag = 0, end_tag = 0, barrier_tag[2] = {};
#endif
  ~Block() {
#if LTX_TSAN
    for (Fiber& fiber : fibers) {
      if (fiber.tsan) __tsan_destroy_fiber(fiber.tsan);
    }
#endif
    for (char* stack : stacks) munmap(stack, kStack);
  }
};

thread_local Block* block __attribute__((tls_model("initial-exec"))) = nullptr;
thread_local Fiber* self __attribute__((tls_model("initial-exec"))) = nullptr;

unsigned long number(const char* name, unsigned long otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoul(text, nullptr, 10) : otherwise;
}
const unsigned long order = number("LTX_EMULATOR_ORDER", 0);
const bool by_warp = order != 0 && order % 2 == 0;

uint64_t draw(Block& b) {
  b.random = b.random * 6364136223846793005ull + 1442695040888963407ull;
  return b.random >> 33;
}

void push_ready(Fiber& fiber) {
  fiber.state = kReady;
  if (by_warp) {
    Warp& warp = block->warps[fiber.warp];
    warp.ready[warp.ready_count++] = fiber.linear;
    block->ready_ranks |= uint64_t{1} << warp.rank;
  } else {
    block->ready.push_back(fiber.linear);
  }
}

Fiber* pop_ready() {
  Block& b = *block;
  if (by_warp) {
    if (!b.ready_ranks) return nullptr;
    const int rank = std::countr_zero(b.ready_ranks);
    Warp& warp = b.warps[b.warp_of_rank[rank]];
    Fiber* next = &b.fibers[warp.ready[--warp.ready_count]];
    if (!warp.ready_count) b.ready_ranks &= ~(uint64_t{1} << rank);
    return next;
  }
  if (b.ready.empty()) return nullptr;
  if (order) std::swap(b.ready[draw(b) % b.ready.size()], b.ready.front());
  Fiber* next = &b.fibers[b.ready.front()];
  b.ready.pop_front();
  return next;
}

void rank_warps(Block& b) {
  const int count = static_cast<int>(b.warps.size());
  b.warp_of_rank.resize(count);
  for (int i = 0; i < count; ++i) b.warp_of_rank[i] = i;
  for (int i = count - 1; i > 0; --i) std::swap(b.warp_of_rank[i], b.warp_of_rank[draw(b) % (i + 1)]);
  b.ready_ranks = 0;
  for (int i = 0; i < count; ++i) {
    Warp& warp = b.warps[b.warp_of_rank[i]];
    warp.rank = i;
    if (warp.ready_count) b.ready_ranks |= uint64_t{1} << i;
  }
}

// Pushes what a call has to keep, changes stacks, returns on the other one.
__attribute__((naked, noinline, no_sanitize("thread", "address"))) void change_stack([[maybe_unused]] void** save,
                                                                                     [[maybe_unused]] void* to) {
  asm volatile(
      "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15;"
      "mov %rsp, (%rdi); mov %rsi, %rsp;"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}

// To another fiber, or back to the launcher (null).
__attribute__((noinline, no_sanitize("thread"))) void change_to(Fiber* from, Fiber* to,
                                                                [[maybe_unused]] bool ends = false) {
  if (from && from == to) return;
  void** save = from ? &from->stack_pointer : &block->launcher_stack_pointer;
  void* target = to ? to->stack_pointer : block->launcher_stack_pointer;
#if LTX_ASAN
  __sanitizer_start_switch_fiber(ends   ? nullptr
                                 : from ? &from->fake_stack
                                        : &block->launcher_fake_stack,
                                 to ? to->stack : block->launcher_stack, to ? kStack : block->launcher_stack_size);
#endif
#if LTX_TSAN
  __tsan_switch_to_fiber(to ? to->tsan : block->launcher_tsan, __tsan_switch_to_fiber_no_sync);
#endif
  self = to;
  if (to) {
    position.thread = to->thread;
    position.lane = to->lane;
  }
  change_stack(save, target);
#if LTX_ASAN
  __sanitizer_finish_switch_fiber(from ? from->fake_stack : block->launcher_fake_stack, nullptr, nullptr);
#endif
}

[[noreturn]] void stuck() {
  std::fprintf(stderr, "emulator: %s: block (%u, %u, %u) is stuck: its threads wait in different places\n",
               block->kernel, block->index.x, block->index.y, block->index.z);
  int shown = 0;
  for (const Fiber& fiber : block->fibers) {
    if (fiber.state != kDone && shown++ < 8) std::fprintf(stderr, "  thread %d: %s\n", fiber.linear, fiber.where);
  }
  std::abort();
}

void park() {
  Fiber* own = self;
  Fiber* next = pop_ready();
  if (!next) stuck();
  change_to(own, next);
}

void release_barrier() {
  Block& b = *block;
  b.at_barrier = 0;
  ++b.barriers;
  if (order) rank_warps(b);
  for (Fiber& fiber : b.fibers) {
    if (fiber.state == kAtBarrier) push_ready(fiber);
  }
}

[[noreturn]] void end_fiber() {
#if LTX_TSAN
  __tsan_release(&block->end_tag);
#endif
  Fiber *own, *next;
  {
    Unwatched unwatched;
    own = self;
    own->where = "its end";
    if (!own->copies.empty()) fail("a thread ended with asynchronous copies that it never waited for");
    own->state = kDone;
    --block->live;
    if (block->live && block->at_barrier == block->live) release_barrier();
    next = pop_ready();
    if (!next && block->live) stuck();
  }
  change_to(own, next, true);
  __builtin_unreachable();
}

void fiber_main() {
#if LTX_ASAN
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!block->launcher_stack) {  // the first fiber comes from the launcher
    block->launcher_stack = bottom;
    block->launcher_stack_size = size;
  }
#endif
#if LTX_TSAN
  int* start_tag;
  {
    Unwatched unwatched;
    start_tag = &block->start_tag;
  }
  __tsan_acquire(start_tag);
#endif
  (*block->body)();
  end_fiber();
}

void* poisoned(size_t bytes) {
  // The exact size, so that AddressSanitizer knows the end.
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, bytes) != 0) fail("out of memory for shared arrays");
  std::memset(memory, 0xFF, bytes);
  return memory;
}

void prepare(Block& b, Fiber& fiber, int i) {
  fiber.thread = {i % b.size.x, i / b.size.x % b.size.y, i / (b.size.x * b.size.y)};
  fiber.linear = i;
  fiber.lane = i % 32;
  fiber.warp = i / 32;
  fiber.group = 0;
  fiber.copies.clear();
  fiber.where = "its beginning";
  if (static_cast<int>(b.stacks.size()) <= i) {
    void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) fail("no memory for the stacks of a block");
    b.stacks.push_back(static_cast<char*>(stack));
  }
  fiber.stack = b.stacks[i];
#if LTX_ASAN
  __asan_unpoison_memory_region(fiber.stack, kStack);
#endif
  // What change_stack pops: six registers, then the return address; at entry the stack is 8 modulo 16.
  auto** top = reinterpret_cast<void**>(fiber.stack + kStack - 64);
  top[1] = nullptr;
  top[0] = reinterpret_cast<void*>(&fiber_main);
  for (int k = 1; k <= 6; ++k) top[-k] = nullptr;
  fiber.stack_pointer = &top[-6];
#if LTX_TSAN
  if (!fiber.tsan) fiber.tsan = __tsan_create_fiber(0);  // 0.3 ms each
#endif
  push_ready(fiber);
}

void run_block(Block& b, size_t dynamic_shared) {
  block = &b;
#if LTX_ASAN
  b.launcher_stack = nullptr;
#endif
  const int threads = static_cast<int>(b.size.x * b.size.y * b.size.z);
  b.fibers.resize(std::max<size_t>(b.fibers.size(), threads));
  {
    Unwatched unwatched;
    for (size_t i = threads; i < b.fibers.size(); ++i) b.fibers[i].state = kDone;
    b.warps.assign((threads + 31) / 32, {});
    b.live = threads;
    b.at_barrier = 0;
    b.ready.clear();
    rank_warps(b);
    b.shared.clear();
    b.shared_bytes = dynamic_shared;
    b.dynamic.reset(dynamic_shared ? poisoned(dynamic_shared) : nullptr);
    for (int i = 0; i < threads; ++i) prepare(b, b.fibers[i], i);
  }
  position.block = b.index;
  position.block_size = b.size;
  position.grid_size = b.grid;
#if LTX_TSAN
  b.launcher_tsan = __tsan_get_current_fiber();
  __tsan_release(&b.start_tag);
#endif
  {
    Unwatched unwatched;
    change_to(nullptr, pop_ready());
  }
#if LTX_TSAN
  __tsan_acquire(&b.end_tag);
#endif
  block = nullptr;
}

// One launch at a time; its blocks are shared by a few threads, each with fibers that it keeps. Never destroyed: a
// process may end in the middle of a launch.
class Chip {
 public:
  Chip() {
    const unsigned count =
        static_cast<unsigned>(number("LTX_EMULATOR_THREADS", std::clamp(std::thread::hardware_concurrency(), 1u, 8u)));
    for (unsigned i = 1; i < count; ++i) std::thread([this] { work(); }).detach();
  }
  void launch(const char* kernel, dim3 grid, dim3 size, size_t dynamic_shared, const std::function<void()>& body) {
    std::unique_lock lock(mutex_);
    kernel_ = kernel;
    grid_ = grid;
    size_ = size;
    dynamic_shared_ = dynamic_shared;
    body_ = &body;
    next_ = 0;
    total_ = size_t{grid.x} * grid.y * grid.z;
    if (total_ > 1) changed_.notify_all();
    take_blocks(lock, own_);
    done_.wait(lock, [&] { return running_ == 0; });
    body_ = nullptr;
  }

 private:
  void work() {
    Block b;
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return body_ && next_ < total_; });
      take_blocks(lock, b);
    }
  }

  void take_blocks(std::unique_lock<std::mutex>& lock, Block& b) {
    ++running_;
    while (next_ < total_) {
      const size_t i = next_++;
      const size_t k = order ? total_ - 1 - i : i;
      b.kernel = kernel_;
      b.body = body_;
      b.size = size_;
      b.grid = grid_;
      b.index = {static_cast<uint32_t>(k % grid_.x), static_cast<uint32_t>(k / grid_.x % grid_.y),
                 static_cast<uint32_t>(k / (size_t{grid_.x} * grid_.y))};
      b.random = order * 0x9E3779B97F4A7C15ull + k;
      const size_t dynamic_shared = dynamic_shared_;
      lock.unlock();
      run_block(b, dynamic_shared);
      lock.lock();
    }
    if (--running_ == 0) done_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_, done_;
  const char* kernel_ = "";
  dim3 grid_, size_;
  size_t dynamic_shared_ = 0, next_ = 0, total_ = 0;
  const std::function<void()>* body_ = nullptr;
  int running_ = 0;
  Block own_;
};

void check(const char* kernel, const dim3& grid, const dim3& size, size_t dynamic_shared) {
  const auto refuse = [&](const char* why) {
    std::fprintf(stderr, "emulator: %s <<<(%u, %u, %u), (%u, %u, %u), %zu>>>: %s\n", kernel, grid.x, grid.y, grid.z,
                 size.x, size.y, size.z, dynamic_shared, why);
    std::abort();
  };
  if (grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) refuse("the grid is too large");
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  if (threads == 0 || threads > kMostThreads || size.z > 64) refuse("a block has 1 to 1024 threads, 64 along z");
  if (dynamic_shared > kMostShared) refuse("more shared memory than a block can have");
}

}  // namespace

void fail(const char* message, const char* detail) {
  std::fprintf(stderr, "emulator: %s: %s %s", block ? block->kernel : "", message, detail);
  if (block && self) {
    std::fprintf(stderr, " (block (%u, %u, %u), thread %d, at %s)", block->index.x, block->index.y, block->index.z,
                 self->linear, self->where);
  }
  std::fputc('\n', stderr);
  std::abort();
}

void launch(const char* kernel, dim3 grid, dim3 size, size_t dynamic_shared, const std::function<void()>& body) {
  if (size_t{grid.x} * grid.y * grid.z == 0) return;
  check(kernel, grid, size, dynamic_shared);
  static Chip& chip = *new Chip;
  static std::mutex one_at_a_time;
  std::lock_guard lock(one_at_a_time);
  chip.launch(kernel, grid, size, dynamic_shared, body);
}

void barrier() {
#if LTX_TSAN
  const int parity = block->barriers & 1;
  __tsan_release(&block->barrier_tag[parity]);
#endif
  {
    Unwatched unwatched;
    self->where = "__syncthreads";
    if (block->at_barrier + 1 == block->live) {
      release_barrier();
      push_ready(*self);
    } else {
      self->state = kAtBarrier;
      ++block->at_barrier;
    }
    park();
  }
#if LTX_TSAN
  __tsan_acquire(&block->barrier_tag[parity]);
#endif
}

void meet(uint32_t mask, const char* name, void* argument, void (*op)(void**)) {
  Unwatched unwatched;
  Fiber& own = *self;
  Warp& warp = block->warps[own.warp];
  own.argument = argument;
  own.where = name;
  if (!(mask >> own.lane & 1)) fail("a lane calls a warp operation whose mask leaves it out:", name);
  if (!warp.arrived) {
    warp.mask = mask;
    warp.operation = name;
  } else if (warp.operation != name || warp.mask != mask) {
    fail("lanes of one warp meet in different operations:", name);
  }
  warp.arrived |= 1u << own.lane;
  if (warp.arrived != mask) {
    own.state = kInWarp;
    return park();
  }
  Fiber* lanes = &block->fibers[own.warp * 32];
  void* arguments[32] = {};
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) arguments[lane] = lanes[lane].argument;
  }
  op(arguments);
  warp.arrived = 0;
  ++warp.meetings;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) && lane != own.lane) push_ready(lanes[lane]);
  }
  if (order) {  // the last to come need not be the first to go on
    push_ready(own);
    park();
  }
}

void warp_barrier(uint32_t mask) {
#if LTX_TSAN
  Warp& warp = block->warps[self->warp];
  const int parity = warp.meetings & 1;
  __tsan_release(&warp.tag[parity]);
#endif
  meet(mask, "__syncwarp", nullptr, [](void**) {});
#if LTX_TSAN
  __tsan_acquire(&warp.tag[parity]);
#endif
}

void* shared(const void* key, size_t bytes) {
  Unwatched unwatched;
  auto found = block->shared.find(key);
  if (found == block->shared.end()) {
    block->shared_bytes += bytes;
    if (block->shared_bytes > kMostShared) fail("more shared memory than a block can have");
    found = block->shared.emplace(key, std::unique_ptr<void, decltype(&std::free)>(poisoned(bytes), &std::free)).first;
  }
  return found->second.get();
}

void* dynamic_shared() {
  if (!block->dynamic) fail("a kernel asks for dynamic shared memory and was launched without");
  return block->dynamic.get();
}

namespace {
void check_aligned(const void* pointer, int bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) fail("an address is not aligned to its width:", what);
}
}  // namespace

void copy_async(void* shared, const void* global, int bytes, bool valid) {
  check_aligned(shared, bytes, "cp_async's target");
  if (valid) check_aligned(global, bytes, "cp_async's source");
  // Plain stores, which ThreadSanitizer sees: from here on no other thread may read what is there.
  auto* words = static_cast<volatile uint32_t*>(shared);
  for (int i = 0; i < bytes / 4; ++i) words[i] = 0xFFFFFFFFu;
  Unwatched unwatched;
  self->copies.push_back({static_cast<char*>(shared), static_cast<const char*>(global), bytes, valid, self->group});
}

void copy_async_commit() { ++self->group; }

void copy_async_wait(int pending) {
  auto& copies = self->copies;
  size_t done = 0;
  for (; done < copies.size() && copies[done].group < self->group - pending; ++done) {
    const Copy& copy = copies[done];
    auto* target = reinterpret_cast<volatile uint32_t*>(copy.shared);
    for (int i = 0; i < copy.bytes / 4; ++i) {
      target[i] = copy.valid ? reinterpret_cast<const uint32_t*>(copy.global)[i] : 0;
    }
  }
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(done));
}

void read_row(const void* row, uint32_t (&words)[4]) {
  check_aligned(row, 16, "ldmatrix's row");
  const auto* source = static_cast<const volatile uint32_t*>(row);
  for (int i = 0; i < 4; ++i) words[i] = source[i];
}

}  // namespace ltx::emulator
