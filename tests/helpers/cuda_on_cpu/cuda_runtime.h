// As much of CUDA as our sources use, on the CPU: a launch runs its blocks one after another, in shuffled order.
//
// The threads of a block are fibres. Each runs until it waits at a barrier or a warp shuffle, in an order that is
// shuffled again every time. Shared memory is full of 0xFF (NaN, -1) when a block starts. What a GPU would leave
// undefined ends the process with a message; AddressSanitizer and UBSan, which the caller compiles in, find the rest.
#pragma once

#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

#define __CUDACC__ 1  // only now: the headers above must not see it
#ifndef CUDART_VERSION
#define CUDART_VERSION 13000
#endif
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __forceinline__ inline
#define __syncthreads() cuda_on_cpu::wait_for_block(__LINE__)
#define __shfl_down_sync(lanes, value, offset) cuda_on_cpu::shuffle_down(lanes, value, offset, __LINE__)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct __half {
  std::uint16_t bits;
};
struct __nv_bfloat16 {
  std::uint16_t bits;
};
using cudaStream_t = void*;
using cudaError_t = int;
inline cudaError_t cudaGetLastError() { return 0; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
using std::max;
using std::min;

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32, kMaxThreads = 1024;
constexpr std::size_t kStack = 256 * 1024, kMaxShared = 227 * 1024;
constexpr std::size_t kMaxParameters = CUDART_VERSION >= 12010 ? 32764 : 4096;  // bytes

[[noreturn]] inline void fail(const char* what, long number) {
  std::fprintf(stderr, "cuda_on_cpu: %s (%ld), block (%u, %u), thread %u\n", what, number, blockIdx.x, blockIdx.y,
               threadIdx.x);
  std::abort();
}

enum class State { ready, in_shuffle, at_barrier, done };
struct Thread {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t context;
  void* fake_stack = nullptr;  // AddressSanitizer's
  State state;
  int line;  // where it waits
};
struct Warp {
  std::uint64_t values[2][kWarp];  // of a shuffle and of the next: no thread can be further ahead
  unsigned arrived, parity;
};

inline std::mt19937 order;
inline std::vector<std::unique_ptr<Thread>> threads;
inline Warp warps[kMaxThreads / kWarp];
inline Thread* running;
inline const std::function<void()>* body;
inline ucontext_t scheduler;
inline const void* scheduler_stack;
inline std::size_t scheduler_size;
inline std::vector<void*> shared;  // variables that this block has declared
inline char* dynamic_shared;       // exactly as many bytes as the launch asks for

inline void leave(State state, int line) {
  Thread& own = *running;
  own.state = state;
  own.line = line;
  __sanitizer_start_switch_fiber(state == State::done ? nullptr : &own.fake_stack, scheduler_stack, scheduler_size);
  swapcontext(&own.context, &scheduler);
  __sanitizer_finish_switch_fiber(own.fake_stack, &scheduler_stack, &scheduler_size);
}

__attribute__((no_sanitize("address"))) inline void enter() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
  (*body)();
  leave(State::done, 0);
}

inline void resume(unsigned thread) {
  running = threads[thread].get();
  threadIdx = dim3(thread, 0, 0);
  void* fake_stack;
  __sanitizer_start_switch_fiber(&fake_stack, running->stack.get(), kStack);
  swapcontext(&scheduler, &running->context);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

inline void wait_for_block(int line) { leave(State::at_barrier, line); }

template <typename T>
T shuffle_down(unsigned lanes, T value, unsigned offset, int line) {
  static_assert(sizeof(T) <= 8);
  if (lanes != 0xffffffffu) fail("a shuffle of less than a warp is not supported: lanes", lanes);
  const unsigned first = threadIdx.x / kWarp * kWarp, lane = threadIdx.x % kWarp;
  Warp& warp = warps[threadIdx.x / kWarp];
  const unsigned parity = warp.parity;
  std::memcpy(&warp.values[parity][lane], &value, sizeof(T));
  if (++warp.arrived < kWarp) {
    leave(State::in_shuffle, line);
  } else {
    warp.arrived = 0;
    warp.parity = 1 - parity;
    for (unsigned i = first; i < first + kWarp; ++i) {
      if (i == threadIdx.x) continue;
      if (threads[i]->line != line) fail("lanes of a warp shuffle on different lines, one on", line);
      threads[i]->state = State::ready;
    }
  }
  if (lane + offset < kWarp) std::memcpy(&value, &warp.values[parity][lane + offset], sizeof(T));
  return value;
}

// Called by every thread that passes the declaration of a shared variable.
inline void share(void* variable, std::size_t size) {
  if (std::find(shared.begin(), shared.end(), variable) != shared.end()) return;
  shared.push_back(variable);
  std::memset(variable, -1, size);
}

inline void run_block(unsigned count) {
  while (threads.size() < count) threads.push_back(std::make_unique<Thread>());
  std::fill(std::begin(warps), std::end(warps), Warp{});
  shared.clear();
  for (unsigned i = 0; i < count; ++i) {
    ucontext_t& context = threads[i]->context;
    getcontext(&context);
    context.uc_stack.ss_sp = threads[i]->stack.get();
    context.uc_stack.ss_size = kStack;
    makecontext(&context, enter, 0);
    context.uc_stack.ss_size = 0;  // or AddressSanitizer would forget what it knows of the stack at each switch
    threads[i]->state = State::ready;
  }
  for (;;) {
    std::vector<unsigned> ready;
    for (unsigned i = 0; i < count; ++i)
      if (threads[i]->state == State::ready) ready.push_back(i);
    if (ready.empty()) {
      const Thread& first = *threads[0];
      for (unsigned i = 0; i < count; ++i) {
        const Thread& other = *threads[i];
        if (other.state == State::in_shuffle) fail("lanes of a warp miss the shuffle on line", other.line);
        if (other.state != first.state || other.line != first.line)
          fail("not all threads reach the barrier on line", std::max(first.line, other.line));
      }
      if (first.state == State::done) return;
      for (unsigned i = 0; i < count; ++i) threads[i]->state = State::ready;
      continue;
    }
    std::shuffle(ready.begin(), ready.end(), order);
    for (const unsigned i : ready) resume(i);
  }
}

// `values` point to the arguments, of `sizes` bytes, as in cuLaunchKernel.
struct Packed {
  void** values;
  const std::size_t* sizes;
  std::size_t count;

  template <typename T>
  const T& get(std::size_t number) const {
    if (count <= number || sizes[number] != sizeof(T))
      fail("a missing argument, or one of another size: number", number);
    return *static_cast<const T*>(values[number]);
  }
};

class Launch {
 public:
  Launch(dim3 grid, dim3 block, std::size_t shared = 0, cudaStream_t = nullptr)
      : grid_(grid), block_(block), shared_(shared) {}

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), Arguments... arguments) const {
    static_assert((sizeof(Parameters) + ... + 0) <= kMaxParameters, "more parameters than a kernel may have");
    const std::tuple<Parameters...> values(arguments...);
    run([&] { std::apply(kernel, values); });
  }

  template <typename... Parameters>
  void packed(void (*kernel)(Parameters...), const Packed& arguments) const {
    if (arguments.count != sizeof...(Parameters)) fail("a wrong number of arguments", arguments.count);
    unpack(kernel, arguments, std::index_sequence_for<Parameters...>());
  }

 private:
  template <typename... Parameters, std::size_t... Numbers>
  void unpack(void (*kernel)(Parameters...), const Packed& arguments, std::index_sequence<Numbers...>) const {
    (*this)(kernel, arguments.get<Parameters>(Numbers)...);
  }

  void run(const std::function<void()>& kernel) const {
    const unsigned count = block_.x;
    if (count < 1 || count > kMaxThreads || block_.y != 1 || block_.z != 1) fail("a block of so many threads", count);
    if (grid_.x < 1 || grid_.y < 1 || grid_.y > 65535 || grid_.z != 1) fail("an impossible grid, x", grid_.x);
    if (shared_ > kMaxShared) fail("more shared memory than a block may have", static_cast<long>(shared_));
    std::vector<unsigned> blocks(std::size_t{grid_.x} * grid_.y);
    std::iota(blocks.begin(), blocks.end(), 0u);
    std::shuffle(blocks.begin(), blocks.end(), order);
    gridDim = grid_;
    blockDim = block_;
    body = &kernel;
    for (const unsigned block : blocks) {
      const std::unique_ptr<char[]> memory(new char[shared_]);
      std::memset(memory.get(), -1, shared_);
      dynamic_shared = memory.get();
      blockIdx = dim3(block % grid_.x, block / grid_.x, 0);
      run_block(count);
    }
  }

  dim3 grid_, block_;
  std::size_t shared_;
};

}  // namespace cuda_on_cpu

template <typename T>
T __ldcs(const T* from) {
  return *from;
}
template <typename T>
void __stcs(T* to, T value) {
  *to = value;
}
template <typename T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to = before + value;
  return before;
}
inline float __bfloat162float(__nv_bfloat16 x) {
  const std::uint32_t bits = std::uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  float value = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
                : exponent == 31 ? (fraction ? NAN : INFINITY)
                                 : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return x.bits & 0x8000 ? -value : value;
}
