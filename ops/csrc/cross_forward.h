// The forward pass over several directions of one map: no direction's copy of the map, of its step sizes or of its output is made.
#pragma once
#include "cross_common.h"
#include "scan_forward.h"

namespace vision_mamba {
namespace VM_ISA {

// What a walk over the tokens of a chunk needs.
template <class T>
struct Walk {
  const int32_t* order;
  int64_t steps, ahead, token;
  int rows;
  const T* dt;
  const T* const* weights;  // a row for each step
  int64_t b, c;             // where in it they begin
  const T* a;
  vec<T> skip, limit;
  T* out;
  int64_t out_token;
  bool add;  // to what stands there
  T* state;
};

// N states that stay in registers: everything of a step in one go, from the map to the map.
template <class T, int N, class S>
static void walk(const Walk<T>& k, const S* u) {
  constexpr int V = kLanes<T>;
  vec<T> h[N];
  for (int n = 0; n < N; n++) h[n] = load(k.state + n * V);
  for (int64_t t = 0; t < k.steps; t++) {
    __builtin_prefetch(u + k.order[t + k.ahead] * k.token);
    __builtin_prefetch(k.out + k.order[t + k.ahead] * k.out_token, 1);
    const vec<T> x = load_row<T, S>(u + k.order[t] * k.token, k.rows), step = load(k.dt + t * V), input = step * x;
    const vec<T> d = smaller<T>(k.limit, step);
    const T *b = k.weights[t] + k.b, *c = k.weights[t] + k.c;
    vec<T> sum[2] = {k.skip * x, {}};
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
      h[n] = decay_of(d, load(k.a + n * V)) * h[n] + input * splat(b[n]);
      sum[n & 1] += h[n] * splat(c[n]);
    }
    T* to = k.out + k.order[t] * k.out_token;
    const vec<T> y = N > 1 ? sum[0] + sum[1] : sum[0];
    store_some<T>(to, k.add ? load_some<T>(to, k.rows) + y : y, k.rows);
  }
  for (int n = 0; n < N; n++) store<T>(k.state + n * V, h[n]);
}
template <class T, int N>
static void walk_any(const Walk<T>& k, const Sequence& u, int64_t offset) {
  switch (u.type) {
    case Scalar::f32: return walk<T, N>(k, (const float*)u.data + offset);
    case Scalar::f64: return walk<T, N>(k, (const double*)u.data + offset);
    case Scalar::bf16: return walk<T, N>(k, (const BFloat16*)u.data + offset);
    case Scalar::f16: return walk<T, N>(k, (const Float16*)u.data + offset);
  }
}
// Whether there is a walk for so many states.
static bool walks(int64_t states) { return states == 1 || states == 4 || (VM_BYTES == 64 && (states == 8 || states == 16)); }
template <class T>
static void walk_states(int64_t states, const Walk<T>& k, const Sequence& u, int64_t offset) {
  switch (states) {
    case 1: return walk_any<T, 1>(k, u, offset);
    case 4: return walk_any<T, 4>(k, u, offset);
#if VM_BYTES == 64
    case 8: return walk_any<T, 8>(k, u, offset);
    case 16: return walk_any<T, 16>(k, u, offset);
#endif
  }
}

template <class T>
static void cross_forward(const CrossForward& f, int64_t first, int64_t last) {
  constexpr int V = kLanes<T>;
  const Cross& cross = f.cross;
  const Scan& scan = cross.scan;
  const WeightRow<T> row(cross);
  const int64_t padded = scan.cut.padded_states, blocks = scan.cut.blocks_per_task, channels = scan.channels;
  [[maybe_unused]] FlushDenormals flush;
  Scratch scratch(sizeof(T) * size_t(3 * kChunk * V + row.tile() + blocks * (2 * padded + row.rank + 1) * V + 256));
  T *dt = scratch.take<T>(kChunk * V), *x = scratch.take<T>(kChunk * V), *y = scratch.take<T>(kChunk * V);
  T* weights = scratch.take<T>(row.tile());
  for (int64_t i = 0; i < row.tile(); i++) weights[i] = T(0);
  StepRows<T> step_rows(weights, row);
  const bool direct = walks(padded) && row.whole && cross.weights.type == kScalar<T>;
  T *a = scratch.take<T>(blocks * padded * V), *state = scratch.take<T>(blocks * padded * V);
  T *dt_weight = scratch.take<T>(blocks * row.rank * V), *limits = scratch.take<T>(blocks * V);

  for (int64_t index = first; index < last; index++) {
    const Task task = make_task<T>(scan, index);
    for (int64_t direction = 0; direction < cross.directions; direction++) {
      for (int64_t k = 0; k < task.blocks; k++) {
        const int64_t channel = task.first_channel + k * V, at = k * padded * V;
        const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
        load_constant<T>(a + at, scan, (const T*)scan.a + direction * channels * scan.states, channel, rows, kLog2e<T>);
        store<T>(limits + k * V, kDecayRange<T> / largest<T>(a + at, padded));  // a longer step decays to zero all the same
        load_dt_weight<T>(dt_weight + k * row.rank * V, row, cross, direction, channel, rows);
        for (int64_t i = 0; i < padded * V; i++) state[at + i] = T(0);
      }
      for (int64_t chunk = 0; chunk < scan.cut.chunks; chunk++) {
        const int64_t t0 = chunk * kChunk;
        const int64_t steps = scan.length - t0 < kChunk ? scan.length - t0 : kChunk;
        const int64_t ahead = t0 + 2 * kChunk <= scan.length ? kChunk : 0;
        const int32_t* order = cross.orders + direction * scan.length + t0;
        if (direct) {
          step_rows.tokens(cross, task.batch, direction, t0, steps, ahead);
        } else {
          load_weight_rows<T>(weights, row, cross, task.batch, direction, t0, steps, round_up(steps, 8), ahead);
        }
        for (int64_t k = 0; k < task.blocks; k++) {
          const int64_t channel = task.first_channel + k * V, at = k * padded * V;
          const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
          if (f.checkpoints != nullptr) {
            const int64_t place = (task.batch * cross.directions + direction) * scan.cut.chunks + chunk;
            T* to = (T*)f.checkpoints + place * scan.states * channels + channel;
            const int64_t next = chunk + 1 < scan.cut.chunks ? scan.states * channels : 0;
            for (int64_t n = 0; n < scan.states; n++) {
              store_some<T>(to + n * channels, load(state + at + n * V), rows);
              __builtin_prefetch(to + next + n * channels, 1);
            }
          }
          const vec<T> bias = channel_values<T>(scan.delta_bias, direction * channels + channel, rows);
          project_steps<T>(dt, nullptr, step_rows, dt_weight + k * row.rank * V, cross.rank, bias, scan.softplus, steps);
          const int64_t from = task.batch * scan.u.batch_stride + direction * cross.u_direction + channel;
          const vec<T> limit = load(limits + k * V);
          const vec<T> skip = channel_values<T>(scan.d, direction * channels + channel, rows);
          T* const out = (T*)f.out + task.batch * scan.length * channels + channel;
          const Walk<T> whole = {order, steps, ahead, scan.u.time_stride, rows, dt, step_rows.at, row.b, row.c, a + at, skip, limit, out,
                                 channels, direction > 0, state + at};
          if (walks(padded)) {
            walk_states<T>(padded, whole, scan.u, from);
            continue;
          }
          load_tokens<T>(x, scan.u, from, order, rows, steps, ahead);
          for (int64_t t = 0; t < steps; t++) {
            const vec<T> u = load(x + t * V), d = load(dt + t * V);
            store<T>(y + t * V, skip * u);
            store<T>(x + t * V, d * u);
            store<T>(dt + t * V, smaller<T>(limit, d));
          }
          advance_all<T, true, true>(padded, steps, dt, x, y, a + at, weights + row.b, weights + row.c, row.size, state + at);
          store_tokens<T>(y, out, channels, order, rows, steps, direction > 0, ahead);
        }
      }
    }
  }
}

}  // namespace VM_ISA
}  // namespace vision_mamba
