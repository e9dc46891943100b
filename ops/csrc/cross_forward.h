// The forward pass over several directions of one map: no direction's copy of the map, of its step sizes or of its output is made.
#pragma once
#include "cross_common.h"
#include "scan_forward.h"

namespace vision_mamba {
namespace VM_ISA {

// One state: everything of a step in one go, since little is done with each number that is loaded.
template <class T, class S>
static void walk_one_as(const S* u, int64_t token, T* out, int64_t out_token, const int32_t* order, int rows, int64_t steps, int64_t ahead,
                        const T* dt, vec<T> a, const T* b, const T* c, int64_t row, vec<T> skip, bool add, T* state) {
  constexpr int V = kLanes<T>;
  vec<T> h = load(state);
  for (int64_t t = 0; t < steps; t++) {
    __builtin_prefetch(u + order[t + ahead] * token);
    __builtin_prefetch(out + order[t + ahead] * out_token, 1);
    const vec<T> x = load_row<T, S>(u + order[t] * token, rows), d = load(dt + t * V);
    h = exp2v(vec<T>(d * a)) * h + (d * x) * splat(b[t * row]);
    T* to = out + order[t] * out_token;
    const vec<T> y = skip * x + h * splat(c[t * row]);
    store_some<T>(to, add ? load_some<T>(to, rows) + y : y, rows);
  }
  store<T>(state, h);
}
template <class T, class... Rest>
static void walk_one(const Sequence& u, int64_t offset, Rest... rest) {
  const int64_t token = u.time_stride;
  switch (u.type) {
    case Scalar::f32: return walk_one_as<T>((const float*)u.data + offset, token, rest...);
    case Scalar::f64: return walk_one_as<T>((const double*)u.data + offset, token, rest...);
    case Scalar::bf16: return walk_one_as<T>((const BFloat16*)u.data + offset, token, rest...);
    case Scalar::f16: return walk_one_as<T>((const Float16*)u.data + offset, token, rest...);
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
  Scratch scratch(sizeof(T) * size_t(3 * kChunk * V + row.tile() + blocks * (2 * padded + row.rank) * V + 256));
  T *dt = scratch.take<T>(kChunk * V), *x = scratch.take<T>(kChunk * V), *y = scratch.take<T>(kChunk * V);
  T* weights = scratch.take<T>(row.tile());
  for (int64_t i = 0; i < row.tile(); i++) weights[i] = T(0);
  T *a = scratch.take<T>(blocks * padded * V), *state = scratch.take<T>(blocks * padded * V);
  T* dt_weight = scratch.take<T>(blocks * row.rank * V);

  for (int64_t index = first; index < last; index++) {
    const Task task = make_task<T>(scan, index);
    for (int64_t direction = 0; direction < cross.directions; direction++) {
      for (int64_t k = 0; k < task.blocks; k++) {
        const int64_t channel = task.first_channel + k * V, at = k * padded * V;
        const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
        load_constant<T>(a + at, scan, (const T*)scan.a + direction * channels * scan.states, channel, rows, kLog2e<T>);
        load_dt_weight<T>(dt_weight + k * row.rank * V, row, cross, direction, channel, rows);
        for (int64_t i = 0; i < padded * V; i++) state[at + i] = T(0);
      }
      for (int64_t chunk = 0; chunk < scan.cut.chunks; chunk++) {
        const int64_t t0 = chunk * kChunk;
        const int64_t steps = scan.length - t0 < kChunk ? scan.length - t0 : kChunk;
        const int64_t ahead = t0 + 2 * kChunk <= scan.length ? kChunk : 0;
        const int32_t* order = cross.orders + direction * scan.length + t0;
        load_weight_rows<T>(weights, row, cross, task.batch, direction, t0, steps, round_up(steps, 8), ahead);
        for (int64_t k = 0; k < task.blocks; k++) {
          const int64_t channel = task.first_channel + k * V, at = k * padded * V;
          const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
          if (f.checkpoints != nullptr) {
            const int64_t place = (task.batch * cross.directions + direction) * scan.cut.chunks + chunk;
            T* to = (T*)f.checkpoints + place * scan.states * channels + channel;
            for (int64_t n = 0; n < scan.states; n++) store_some<T>(to + n * channels, load(state + at + n * V), rows);
          }
          const vec<T> bias = channel_values<T>(scan.delta_bias, direction * channels + channel, rows);
          project_steps<T>(dt, nullptr, weights, row, dt_weight + k * row.rank * V, cross.rank, bias, scan.softplus, steps);
          const int64_t from = task.batch * scan.u.batch_stride + direction * cross.u_direction + channel;
          const vec<T> skip = channel_values<T>(scan.d, direction * channels + channel, rows);
          T* const out = (T*)f.out + task.batch * scan.length * channels + channel;
          if (padded == 1) {
            walk_one<T>(scan.u, from, out, channels, order, rows, steps, ahead, dt, load(a + at), weights + row.b, weights + row.c, row.size,
                        skip, direction > 0, state + at);
            continue;
          }
          load_tokens<T>(x, scan.u, from, order, rows, steps, ahead);
          // A longer step decays to zero all the same.
          const vec<T> limit = kDecayRange<T> / largest<T>(a + at, padded);
          for (int64_t t = 0; t < steps; t++) {
            const vec<T> u = load(x + t * V), d = load(dt + t * V);
            store<T>(y + t * V, skip * u);
            store<T>(x + t * V, d * u);
            store<T>(dt + t * V, d > limit ? limit : d);
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
