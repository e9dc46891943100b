// The forward scan. A vector holds neighbouring channels, whose states stay in registers while a chunk of time passes:
//   decay = 2^(dt * A log2 e);  h = decay * h + (dt * u) * B;  y += h * C
#pragma once
#include "scan_common.h"

namespace vision_mamba {
namespace VM_ISA {

// N states of one block of channels over `steps` steps. `b` and `c` are either [step][row], shared by the channels, or [state][lane].
template <class T, int N, bool VaryingB, bool VaryingC>
static void advance(int64_t steps, const T* dt, const T* x, T* y, const T* a, const T* b, const T* c, int64_t row, T* state) {
  constexpr int V = kLanes<T>;
  vec<T> h[N];
  for (int n = 0; n < N; n++) h[n] = load(state + n * V);
  for (int64_t t = 0; t < steps; t++) {
    const vec<T> d = load(dt + t * V), input = load(x + t * V);
    vec<T> sum[2] = {load(y + t * V), {}};
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
      const vec<T> decay = decay_of(d, load(a + n * V));
      const vec<T> bn = VaryingB ? splat(b[t * row + n]) : load(b + n * V);
      const vec<T> cn = VaryingC ? splat(c[t * row + n]) : load(c + n * V);
      h[n] = decay * h[n] + input * bn;
      sum[n & 1] += h[n] * cn;
    }
    store<T>(y + t * V, N > 1 ? sum[0] + sum[1] : sum[0]);
  }
  for (int n = 0; n < N; n++) store<T>(state + n * V, h[n]);
}

template <class T, bool VaryingB, bool VaryingC>
static void advance_all(int64_t states, int64_t steps, const T* dt, const T* x, T* y, const T* a, const T* b, const T* c, int64_t row,
                        T* state) {
  constexpr int V = kLanes<T>;
  for (int64_t n = 0; n < states;) {
    const T* bn = VaryingB ? b + n : b + n * V;
    const T* cn = VaryingC ? c + n : c + n * V;
    const T* an = a + n * V;
    T* hn = state + n * V;
#if VM_BYTES == 64
    if (states - n >= 16) {
      advance<T, 16, VaryingB, VaryingC>(steps, dt, x, y, an, bn, cn, row, hn);
      n += 16;
      continue;
    }
    if (states - n >= 8) {
      advance<T, 8, VaryingB, VaryingC>(steps, dt, x, y, an, bn, cn, row, hn);
      n += 8;
      continue;
    }
#endif
    if (states - n >= 4) {
      advance<T, 4, VaryingB, VaryingC>(steps, dt, x, y, an, bn, cn, row, hn);
      n += 4;
      continue;
    }
    advance<T, 1, VaryingB, VaryingC>(steps, dt, x, y, an, bn, cn, row, hn);
    n += 1;
  }
}

template <class T>
static void scan_forward(const ScanForward& f, int64_t first, int64_t last) {
  constexpr int V = kLanes<T>;
  const Scan& scan = f.scan;
  const int64_t padded = scan.cut.padded_states, row = state_row<T>(scan.states), blocks = scan.cut.blocks_per_task;
  const bool varying_b = scan.b.constant == nullptr, varying_c = scan.c.constant == nullptr;
  [[maybe_unused]] FlushDenormals flush;
  Scratch scratch(sizeof(T) * size_t(3 * kChunk * V + 2 * kChunk * row + 4 * blocks * padded * V + 64));
  T *dt = scratch.take<T>(kChunk * V), *x = scratch.take<T>(kChunk * V), *y = scratch.take<T>(kChunk * V);
  T *bt = scratch.take<T>(kChunk * row), *ct = scratch.take<T>(kChunk * row);
  T *a = scratch.take<T>(blocks * padded * V), *state = scratch.take<T>(blocks * padded * V);
  T *bk = scratch.take<T>(blocks * padded * V), *ck = scratch.take<T>(blocks * padded * V);

  for (int64_t index = first; index < last; index++) {
    const Task task = make_task<T>(scan, index);
    for (int64_t k = 0; k < task.blocks; k++) {
      const int64_t channel = task.first_channel + k * V, at = k * padded * V;
      const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
      load_constant<T>(a + at, scan, scan.a, channel, rows, kLog2e<T>);
      load_constant<T>(bk + at, scan, scan.b.constant, channel, rows, T(1));
      load_constant<T>(ck + at, scan, scan.c.constant, channel, rows, T(1));
      for (int64_t i = 0; i < padded * V; i++) state[at + i] = T(0);
    }
    for (int64_t chunk = 0; chunk < scan.cut.chunks; chunk++) {
      const int64_t t0 = chunk * kChunk;
      const int64_t steps = scan.length - t0 < kChunk ? scan.length - t0 : kChunk;
      load_weights<T>(bt, scan, scan.b, task.batch, task.group, t0, steps, kChunk);
      load_weights<T>(ct, scan, scan.c, task.batch, task.group, t0, steps, kChunk);
      for (int64_t k = 0; k < task.blocks; k++) {
        const int64_t channel = task.first_channel + k * V, at = k * padded * V;
        const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
        if (f.checkpoints != nullptr) {
          T* to = (T*)f.checkpoints + (task.batch * scan.cut.chunks + chunk) * scan.states * scan.channels + channel;
          const int64_t next = chunk + 1 < scan.cut.chunks ? scan.states * scan.channels : 0;
          for (int64_t n = 0; n < scan.states; n++) {
            store_some<T>(to + n * scan.channels, load(state + at + n * V), rows);
            __builtin_prefetch(to + next + n * scan.channels, 1);
          }
        }
        load_steps<T>(dt, nullptr, scan, task.batch, channel, rows, t0, steps, kChunk);
        load_tile<T>(x, V, scan.u, task.batch, channel, rows, t0, steps, kChunk);
        const vec<T> skip = channel_values<T>(scan.d, channel, rows);
        // A longer step decays to zero all the same.
        const vec<T> limit = kDecayRange<T> / largest<T>(a + at, padded);
        for (int64_t t = 0; t < steps; t++) {
          const vec<T> u = load(x + t * V);
          store<T>(y + t * V, skip * u);
          const vec<T> d = load(dt + t * V);
          store<T>(x + t * V, d * u);
          store<T>(dt + t * V, smaller<T>(limit, d));
        }
        const T *b = varying_b ? bt : bk + at, *c = varying_c ? ct : ck + at;
        if (varying_b && varying_c) {
          advance_all<T, true, true>(padded, steps, dt, x, y, a + at, b, c, row, state + at);
        } else if (varying_b) {
          advance_all<T, true, false>(padded, steps, dt, x, y, a + at, b, c, row, state + at);
        } else if (varying_c) {
          advance_all<T, false, true>(padded, steps, dt, x, y, a + at, b, c, row, state + at);
        } else {
          advance_all<T, false, false>(padded, steps, dt, x, y, a + at, b, c, row, state + at);
        }
        if (scan.z.data != nullptr) {
          load_tile<T>(x, V, scan.z, task.batch, channel, rows, t0, steps, kChunk);
          for (int64_t t = 0; t < steps; t++) {
            const vec<T> z = load(x + t * V);
            store<T>(y + t * V, load(y + t * V) * (z * sigmoid<T>(z)));
          }
        }
        store_tile<T>(y, V, f.out, task.batch, channel, rows, t0, steps, kChunk);
      }
    }
    for (int64_t k = 0; k < task.blocks; k++) {
      const int64_t channel = task.first_channel + k * V, at = k * padded * V;
      const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
      T* to = (T*)f.last_state + (task.batch * scan.channels + channel) * scan.states;
      for (int64_t n = 0; n < scan.states; n++) scatter<T>(to + n, scan.states, load(state + at + n * V), rows);
    }
  }
}

}  // namespace VM_ISA
}  // namespace vision_mamba
