// The kernels on the CPU, for tests where no GPU is: every CUDA thread is a fibre, blocks run one after another.
//
// It shows wrong indices, wrong sums, forgotten barriers that make a thread wait for ever, addresses that are not multiples of what is read there (the test
// compiles it so), and, with a sanitizer, accesses outside of memory. The threads of a block take turns in another order at every launch, so that numbers which
// depend on who comes first, where a barrier is missing, differ from run to run. It cannot show the GPU's memory model, its rounding of 2^x, registers or speed.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace vision_mamba {

struct Dim {
  int x;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace emulated {

struct Barrier {
  int arrived = 0;
  long generation = 0;
};
struct Fibre {
  ucontext_t context;
  std::vector<char> stack;
  bool finished = false;
};
struct Machine {
  ucontext_t scheduler;
  std::vector<Fibre> fibres;
  std::vector<Barrier> warps;
  Barrier block;
  std::vector<float> exchange;
  std::vector<float4> shared;
  std::function<void()> body;
  int thread = 0, threads = 0, index = 0;
  long progress = 0;
  uint32_t launches = 0;
};
inline Machine& machine() {
  static Machine m;
  return m;
}
inline void yield() {
  Machine& m = machine();
  swapcontext(&m.fibres[size_t(m.thread)].context, &m.scheduler);
}
inline void wait(Barrier& barrier, int threads) {
  const long generation = barrier.generation;
  machine().progress++;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0, barrier.generation++;
    return;
  }
  while (barrier.generation == generation) yield();
}
inline void wait_warp() {
  Machine& m = machine();
  const int warp = m.thread / 32, left = m.threads - 32 * warp;
  wait(m.warps[size_t(warp)], left < 32 ? left : 32);
}
inline void enter() {
  Machine& m = machine();
  m.body();
  m.fibres[size_t(m.thread)].finished = true;
  m.progress++;
}
inline void run(int64_t blocks, int threads, size_t shared, std::function<void()> body) {
  Machine& m = machine();
  m.threads = threads, m.body = std::move(body);
  m.fibres.resize(size_t(threads)), m.exchange.resize(size_t(threads));
  const uint32_t drawn = ++m.launches * 2654435769u;
  const int first = int((drawn >> 8) % uint32_t(threads));
  const bool backwards = drawn >> 31;
  for (int64_t b = 0; b < blocks; b++) {
    m.index = int(b), m.block = {};
    m.warps.assign(size_t(threads + 31) / 32, {});
    // What a block finds in shared memory is nobody's: numbers that would show in any sum.
    m.shared.assign(shared / sizeof(float4) + 1, float4{NAN, NAN, NAN, NAN});
    for (Fibre& f : m.fibres) {
      f.finished = false, f.stack.resize(1 << 16);
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.data(), f.context.uc_stack.ss_size = f.stack.size(), f.context.uc_link = &m.scheduler;
      makecontext(&f.context, enter, 0);
    }
    for (int left = threads; left > 0;) {
      const long before = m.progress;
      left = 0;
      for (int turn = 0; turn < threads; turn++) {
        m.thread = (first + (backwards ? threads - turn : turn)) % threads;
        Fibre& f = m.fibres[size_t(m.thread)];
        if (!f.finished) swapcontext(&m.scheduler, &f.context);
        left += !f.finished;
      }
      if (left > 0 && m.progress == before) fprintf(stderr, "emulation: threads wait for ever at a barrier\n"), abort();
    }
  }
}
inline float shuffle(float value, int mask) {
  Machine& m = machine();
  m.exchange[size_t(m.thread)] = value;
  wait_warp();
  const float other = m.exchange[size_t(m.thread ^ mask)];
  wait_warp();
  return other;
}

}  // namespace emulated

inline int thread_index() { return emulated::machine().thread; }
inline int64_t block_index() { return emulated::machine().index; }
inline void sync_block() { emulated::wait(emulated::machine().block, emulated::machine().threads); }
inline float shuffle_xor(float value, int mask) { return emulated::shuffle(value, mask); }
inline int shuffle_from(int value, int lane) {
  emulated::Machine& m = emulated::machine();
  memcpy(&m.exchange[size_t(m.thread)], &value, 4);
  emulated::wait_warp();
  memcpy(&value, &m.exchange[size_t(m.thread / 32 * 32 + lane)], 4);
  emulated::wait_warp();
  return value;
}
inline void sync_warp() { emulated::wait_warp(); }
inline void copy_async(void* to, const void* from) { memcpy(to, from, 16); }
inline void copy_word_async(void* to, const void* from) { memcpy(to, from, 4); }
inline void wait_copies() {}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline float fast_exp2(float x) { return exp2f(x); }
inline float fast_reciprocal(float x) { return 1.f / x; }
inline float choose(bool first, float a, float b) { return first ? a : b; }
inline float exp2_by_bits(float mantissa, float shifted) {
  uint32_t a, b;
  memcpy(&a, &mantissa, 4), memcpy(&b, &shifted, 4);
  a += b << 23;
  memcpy(&mantissa, &a, 4);
  return mantissa;
}
inline char* shared_memory() { return reinterpret_cast<char*>(emulated::machine().shared.data()); }

// Few, so that small tests are cut into segments too.
inline int64_t multiprocessors() { return 2; }

// Little, so that small tests take every form.
struct SharedLimits {
  size_t block, multiprocessor;
};
inline SharedLimits shared_limits() { return {40 * 1024, 64 * 1024}; }

template <class Kernel, class Job>
void launch(Kernel kernel, int64_t blocks, int threads, size_t shared, const Job& job) {
  emulated::run(blocks, threads, shared, [=] { kernel(job); });
}
struct DeviceOf {
  explicit DeviceOf(const at::Tensor&) {}
};

}  // namespace vision_mamba
#define VM_KEY CPU
