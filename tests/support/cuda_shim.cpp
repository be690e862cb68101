// Runs the kernels of the CUDA engine on the host, block by block, each CUDA thread as a fiber.
//
// A fiber runs until it reaches a block barrier, a warp shuffle or its end; a shuffle is a barrier
// of its warp. A barrier that not all threads reach, an index outside a fixed array and a misaligned
// access are errors, which `shim_launch` returns. Fibers run in ascending or descending order: a
// kernel whose result depends on it has a race.
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// ---- what CUDA's compilers predefine -----------------------------------------------------------

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared_memory")))

struct Index {
  unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }

template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) <= sizeof(std::uint64_t) && sizeof(From) <= sizeof(std::uint64_t), "");
  std::uint64_t word = 0;
  std::memcpy(&word, &from, sizeof from);
  To to;
  std::memcpy(&to, &word, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }

// Bounds of that section, from the linker; weak, as a variant may have nothing in it.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_shared_memory[];
extern "C" __attribute__((weak, visibility("hidden"))) char __stop_shared_memory[];

// ---- fibers ------------------------------------------------------------------------------------

namespace shim {

enum Error { kNone, kDeadlock, kOutOfBounds, kMisaligned, kUnknownKernel, kTooManyThreads };
enum State { kReady, kAtBlock, kAtWarp, kDone };
constexpr unsigned kMost = 256, kWarp = 32;
constexpr std::size_t kStack = 256 * 1024;

struct Fiber {
  jmp_buf place;
  ucontext_t first;  // used once: afterwards jumps are much cheaper
  std::vector<char> stack;
  State state = kDone;
  bool started = false;
  unsigned parity = 0;
};

Fiber* fibers = nullptr;
unsigned current = 0;
jmp_buf scheduler;
void (*kernel)(const void*) = nullptr;
const void* arguments = nullptr;
std::uint64_t exchanged[2][kMost];
Error error = kNone;

void wait(State state) {
  fibers[current].state = state;
  if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler, 1);
}

void body() {
  for (;;) {
    kernel(arguments);
    wait(kDone);
  }
}

void resume(unsigned i) {
  if (_setjmp(scheduler)) return;
  current = i;
  threadIdx = {i, 0, 0};
  Fiber& fiber = fibers[i];
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  fiber.stack.resize(kStack);
  getcontext(&fiber.first);
  fiber.first.uc_stack.ss_sp = fiber.stack.data();
  fiber.first.uc_stack.ss_size = kStack;
  fiber.first.uc_link = nullptr;
  makecontext(&fiber.first, body, 0);
  setcontext(&fiber.first);
}

// Lets threads first..first + count pass if all of them wait in `state`.
bool release(unsigned first, unsigned count, State state) {
  for (unsigned i = first; i < first + count; ++i)
    if (fibers[i].state != state) return false;
  for (unsigned i = first; i < first + count; ++i) fibers[i].state = kReady;
  return true;
}

Error run_block(unsigned threads, bool descending) {
  for (unsigned i = 0; i < threads; ++i) fibers[i].state = kReady;
  // A block finds nan in its shared memory, not what the last one left there.
  if (__start_shared_memory)
    std::memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
  for (;;) {
    unsigned done = 0;
    for (unsigned k = 0; k < threads; ++k) {
      const unsigned i = descending ? threads - 1 - k : k;
      if (fibers[i].state == kReady) resume(i);
      done += fibers[i].state == kDone;
    }
    if (done == threads) return error;
    bool passed = release(0, threads, kAtBlock);
    for (unsigned w = 0; w < threads; w += kWarp) passed = release(w, kWarp, kAtWarp) || passed;
    if (!passed) return kDeadlock;
  }
}

}  // namespace shim

inline void __syncthreads() { shim::wait(shim::kAtBlock); }
inline void __threadfence() {}

// Blocks run one after another.
inline unsigned atomicInc(unsigned* at, unsigned most) {
  const unsigned before = *at;
  *at = before >= most ? 0 : before + 1;
  return before;
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int offset) {
  const unsigned me = shim::current;
  auto& slots = shim::exchanged[shim::fibers[me].parity ^= 1];  // the last round is still read
  slots[me] = bits_as<std::uint64_t>(value);
  shim::wait(shim::kAtWarp);
  return bits_as<T>(slots[me ^ static_cast<unsigned>(offset)]);
}

// Called by code compiled with -fsanitize=alignment,bounds.
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void*) { shim::error = shim::kMisaligned; }
extern "C" void __ubsan_handle_out_of_bounds(void*, void*) { shim::error = shim::kOutOfBounds; }

// ---- the source under test ---------------------------------------------------------------------

#include "source.cu"

#ifdef SJ_CHUNK
float widen(Half x) { return static_cast<float>(bits_as<_Float16>(x.bits)); }
void narrow(float x, Half& out) { out.bits = bits_as<unsigned short>(static_cast<_Float16>(x)); }
#endif

// ---- entry points ------------------------------------------------------------------------------

#define KERNEL(name, Arguments)                                                 \
  if (!std::strcmp(kernel, #name)) {                                            \
    shim::kernel = [](const void* a) { name(*static_cast<const Arguments*>(a)); }; \
    return sizeof(Arguments);                                                   \
  }

// Chooses a kernel; returns the size of its argument block, 0 where there is none of that name.
extern "C" std::size_t shim_choose(const char* kernel) {
#if !defined(SJ_CHUNK)
  KERNEL(sj_collect, CollectArguments)
#elif SJ_CHUNK == 0
  KERNEL(sj_rows, ForwardArguments)
  KERNEL(sj_groups, ForwardArguments)
  KERNEL(sj_columns, ForwardArguments)
  KERNEL(sj_merge, MergeArguments)
#else
  KERNEL(sj_backward, BackwardArguments)
  KERNEL(sj_finish, FinishArguments)
#endif
  return 0;
}

extern "C" int shim_launch(const char* kernel, unsigned blocks_x, unsigned blocks_y,
                           unsigned threads, const void* arguments, int descending) {
  if (!shim_choose(kernel)) return shim::kUnknownKernel;
  if (threads > shim::kMost || threads % shim::kWarp) return shim::kTooManyThreads;
  if (!shim::fibers) shim::fibers = new shim::Fiber[shim::kMost];
  shim::arguments = arguments;
  shim::error = shim::kNone;
  blockDim = {threads, 1, 1};
  gridDim = {blocks_x, blocks_y, 1};
  for (unsigned y = 0; y < blocks_y; ++y)
    for (unsigned x = 0; x < blocks_x; ++x) {
      blockIdx = {x, y, 0};
      if (const int code = shim::run_block(threads, descending)) {
        shim::fibers = nullptr;  // left as they stand: some may wait for ever
        return code;
      }
    }
  return shim::kNone;
}
