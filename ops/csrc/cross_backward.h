// The backward pass over several directions of one map. The gradient of the step sizes goes on to dt_weight and to the tokens' weights
// chunk by chunk, while it is in the first-level cache.
#pragma once
#include "cross_common.h"
#include "scan_backward.h"

namespace vision_mamba {
namespace VM_ISA {

// gw[r][lane] += sum over steps of gdelta[t][lane] weights[t][r]
template <class T>
static void add_dt_weight(T* gw, const T* gdelta, const T* weights, const WeightRow<T>& row, int64_t rank, int64_t steps) {
  constexpr int V = kLanes<T>;
  for (int64_t r = 0; r < rank; r += kRanks) {
    vec<T> sum[kRanks];
    for (int i = 0; i < kRanks; i++) sum[i] = load(gw + (r + i) * V);
    for (int64_t t = 0; t < steps; t++) {
      const vec<T> g = load(gdelta + t * V);
#pragma GCC unroll 8
      for (int i = 0; i < kRanks; i++) sum[i] += g * splat(weights[t * row.size + r + i]);
    }
    for (int i = 0; i < kRanks; i++) store<T>(gw + (r + i) * V, sum[i]);
  }
}

// gp[r][t] += sum over lanes of gdelta[t][lane] dt_weight[r][lane], for the first `rank` of the padded rows; `turned` is scratch, [lane][t]. At the
// `first` time nothing stands in gp.
template <class T>
static void add_rank_weights(T* gp, T* turned, const T* gdelta, const T* dt_weight, int64_t rank, int64_t padded_steps, bool first) {
  constexpr int V = kLanes<T>;
  for (int64_t t = 0; t < padded_steps; t += V) {
    vec<T> square[V];
    for (int i = 0; i < V; i++) square[i] = load(gdelta + (t + i) * V);
    transpose<T>(square);
    for (int i = 0; i < V; i++) store<T>(turned + i * kChunk + t, square[i]);
  }
  for (int64_t t = 0; t < padded_steps; t += V) {
    int64_t r = 0;
    for (; r + 4 <= rank; r += 4) {
      vec<T> sum[4];
      for (int i = 0; i < 4; i++) sum[i] = first ? vec<T>{} : load(gp + (r + i) * kChunk + t);
      for (int lane = 0; lane < V; lane++) {
        const vec<T> g = load(turned + lane * kChunk + t);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) sum[i] += g * splat(dt_weight[(r + i) * V + lane]);
      }
      for (int i = 0; i < 4; i++) store<T>(gp + (r + i) * kChunk + t, sum[i]);
    }
    for (; r < rank; r++) {
      vec<T> sum = first ? vec<T>{} : load(gp + r * kChunk + t);
      for (int lane = 0; lane < V; lane++) sum += load(turned + lane * kChunk + t) * splat(dt_weight[r * V + lane]);
      store<T>(gp + r * kChunk + t, sum);
    }
  }
}

template <class T>
static void cross_backward(const CrossBackward& f, int64_t first, int64_t last) {
  constexpr int V = kLanes<T>;
  const Cross& cross = f.cross;
  const Scan& scan = cross.scan;
  const WeightRow<T> row(cross);
  const int64_t padded = scan.cut.padded_states, blocks = scan.cut.blocks_per_task, channels = scan.channels, length = scan.length;
  const int64_t tile_size = kChunk * V, state_size = blocks * padded * V, rank_size = blocks * row.rank * V;
  const int64_t directions = f.last_direction - f.first_direction;
  [[maybe_unused]] FlushDenormals flush;
  Scratch scratch(sizeof(T) * size_t((8 + 2 * kBackStates<T>)*tile_size + 16 * V + row.tile() + 3 * state_size + 2 * rank_size +
                                     2 * blocks * V + 512));
  Tiles<T> tile{};
  T** const tiles[] = {&tile.dt, &tile.slope, &tile.u, &tile.x, &tile.dy, &tile.gdt, &tile.gx};
  for (T** p : tiles) *p = scratch.take<T>(tile_size);
  T* turned = scratch.take<T>(tile_size);
  tile.decay = scratch.take<T>(tile_size * kBackStates<T>);
  tile.h = scratch.take<T>((tile_size + V) * kBackStates<T>);
  T* weights = scratch.take<T>(row.tile());
  for (int64_t i = 0; i < row.tile(); i++) weights[i] = T(0);
  const StepRows<T> step_rows(weights, row);
  T *a = scratch.take<T>(state_size), *carry = scratch.take<T>(state_size), *ga = scratch.take<T>(state_size);
  T *dt_weight = scratch.take<T>(rank_size), *gw = scratch.take<T>(rank_size);
  T *gd = scratch.take<T>(blocks * V), *gbias = scratch.take<T>(blocks * V);

  for (int64_t index = first; index < last; index++) {
    const Task task = make_task<T>(scan, index);
    for (int64_t direction = f.first_direction; direction < f.last_direction; direction++) {
      for (int64_t i = 0; i < state_size; i++) carry[i] = ga[i] = T(0);
      for (int64_t i = 0; i < rank_size; i++) gw[i] = T(0);
      for (int64_t i = 0; i < blocks * V; i++) gd[i] = gbias[i] = T(0);
      for (int64_t k = 0; k < task.blocks; k++) {
        const int64_t channel = task.first_channel + k * V;
        const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
        const T* from = (const T*)scan.a + direction * channels * scan.states;
        load_constant<T>(a + k * padded * V, scan, from, channel, rows, kLog2e<T>);
        load_dt_weight<T>(dt_weight + k * row.rank * V, row, cross, direction, channel, rows);
      }
      // Where the directions share their tokens, their gradients are added up.
      const bool shared = cross.u_direction == 0, add = shared && direction > 0;
      T* const grad_u = (T*)f.grad_u + (shared ? task.batch : task.batch * cross.directions + direction) * length * channels;
      const int64_t share = index * directions + direction - f.first_direction;
      const int64_t place = task.batch * cross.directions + direction;
      for (int64_t chunk = scan.cut.chunks - 1; chunk >= 0; chunk--) {
        const int64_t t0 = chunk * kChunk;
        const int64_t steps = length - t0 < kChunk ? length - t0 : kChunk;
        const int64_t padded_steps = round_up(steps, V), ahead = chunk > 0 ? -kChunk : 0;
        const int32_t* order = cross.orders + direction * length + t0;
        load_weight_rows<T>(weights, row, cross, task.batch, direction, t0, steps, kChunk, ahead);
        T* sum_b = (T*)f.partial_b + share * scan.cut.partial_size + chunk * kChunk * padded;
        T* sum_c = (T*)f.partial_c + share * scan.cut.partial_size + chunk * kChunk * padded;
        T* sum_dt = (T*)f.partial_dt + (share * scan.cut.chunks + chunk) * cross.rank * kChunk;
        if (chunk > 0) {
          fetch_to_write<T>(sum_b - kChunk * padded, kChunk * padded);
          fetch_to_write<T>(sum_c - kChunk * padded, kChunk * padded);
          fetch_to_write<T>(sum_dt - cross.rank * kChunk, cross.rank * kChunk);
        }
        for (int64_t k = 0; k < task.blocks; k++) {
          const int64_t channel = task.first_channel + k * V, at = k * padded * V;
          const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
          const T* w = dt_weight + k * row.rank * V;
          const vec<T> bias = channel_values<T>(scan.delta_bias, direction * channels + channel, rows);
          const vec<T> skip = channel_values<T>(scan.d, direction * channels + channel, rows);
          project_steps<T>(tile.dt, tile.slope, step_rows, w, cross.rank, bias, scan.softplus, steps);
          const int64_t from = task.batch * scan.u.batch_stride + direction * cross.u_direction + channel;
          load_tokens<T>(tile.u, scan.u, from, order, rows, steps, ahead);
          load_tokens<T>(tile.dy, f.grad_out, task.batch * f.grad_out.batch_stride + channel, order, rows, steps, ahead);
          for (int64_t t = 0; t < padded_steps; t++) {
            if (t >= steps) store<T>(tile.dt + t * V, vec<T>{}), store<T>(tile.u + t * V, vec<T>{}), store<T>(tile.dy + t * V, vec<T>{});
            store<T>(tile.x + t * V, load(tile.dt + t * V) * load(tile.u + t * V));
            store<T>(tile.gdt + t * V, vec<T>{});
            store<T>(tile.gx + t * V, vec<T>{});
          }
          BackBlock<T> block{};
          block.steps = padded_steps;
          block.a = a + at;
          block.b = weights + row.b;
          block.c = weights + row.c;
          block.row = row.size;
          block.carry = carry + at;
          block.ga = block.gb = block.gc = ga + at;  // B and C are not constant
          block.sum_b = sum_b;
          block.sum_c = sum_c;
          block.first = k == 0;
          const T* before = (const T*)f.checkpoints + (place * scan.cut.chunks + chunk) * scan.states * channels + channel;
          retreat_all<T, true, true, false>(scan, block, tile, before, chunk > 0 ? -scan.states * channels : 0, rows);

          vec<T> sum_d = load(gd + k * V), sum_bias = load(gbias + k * V);
          for (int64_t t = 0; t < steps; t++) {
            const vec<T> u = load(tile.u + t * V), dy = load(tile.dy + t * V), gx = load(tile.gx + t * V);
            vec<T> gdelta = load(tile.gdt + t * V) * kLn2<T> + gx * u;
            if (scan.softplus) gdelta *= load(tile.slope + t * V);
            store<T>(tile.gdt + t * V, gdelta);
            store<T>(tile.gx + t * V, gx * load(tile.dt + t * V) + skip * dy);
            sum_d += dy * u;
            sum_bias += gdelta;
          }
          for (int64_t t = steps; t < padded_steps; t++) store<T>(tile.gdt + t * V, vec<T>{});
          store<T>(gd + k * V, sum_d);
          store<T>(gbias + k * V, sum_bias);
          store_tokens<T>(tile.gx, grad_u + channel, channels, order, rows, steps, add, ahead);
          add_dt_weight<T>(gw + k * row.rank * V, tile.gdt, weights, row, cross.rank, steps);
          add_rank_weights<T>(sum_dt, turned, tile.gdt, w, cross.rank, padded_steps, k == 0);
        }
      }
      for (int64_t k = 0; k < task.blocks; k++) {
        const int64_t channel = task.first_channel + k * V;
        const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
        T* to_a = (T*)f.grad_a + (place * channels + channel) * scan.states;
        for (int64_t n = 0; n < scan.states; n++) scatter<T>(to_a + n, scan.states, load(ga + (k * padded + n) * V), rows);
        T* to_w = (T*)f.grad_dt_weight + (place * channels + channel) * cross.rank;
        for (int64_t r = 0; r < cross.rank; r++) scatter<T>(to_w + r, cross.rank, load(gw + (k * row.rank + r) * V), rows);
        if (f.grad_d != nullptr) store_some<T>((T*)f.grad_d + place * channels + channel, load(gd + k * V), rows);
        if (f.grad_delta_bias != nullptr) store_some<T>((T*)f.grad_delta_bias + place * channels + channel, load(gbias + k * V), rows);
      }
    }
  }
}

// Adds, for each (batch entry, direction of the pass, chunk), the stores of the tasks that share those weights, and puts the sums in place.
template <class T>
static void merge_cross(const CrossBackward& f, int64_t first, int64_t last) {
  constexpr int V = kLanes<T>;
  const Cross& cross = f.cross;
  const Scan& scan = cross.scan;
  const int64_t padded = scan.cut.padded_states, states = scan.states, rank = cross.rank, chunks = scan.cut.chunks;
  const int64_t size = kChunk * padded, tasks = scan.cut.tasks_per_group, directions = f.last_direction - f.first_direction;
  const int some = padded >= kBackStates<T> ? kBackStates<T> : 1;  // see `retreat_all`
  Scratch scratch(sizeof(T) * size_t(2 * size + rank * kChunk + 64));
  T *b = scratch.take<T>(size), *c = scratch.take<T>(size), *dt = scratch.take<T>(rank * kChunk);
  for (int64_t item = first; item < last; item++) {
    const int64_t chunk = item % chunks, pass = item / chunks % directions, batch = item / chunks / directions;
    const int64_t direction = f.first_direction + pass, t0 = chunk * kChunk;
    const int64_t steps = scan.length - t0 < kChunk ? scan.length - t0 : kChunk;
    const int64_t padded_steps = round_up(steps, V), used = padded_steps * padded;
    for (int64_t i = 0; i < used; i++) b[i] = c[i] = T(0);
    for (int64_t i = 0; i < rank * kChunk; i++) dt[i] = T(0);
    for (int64_t k = 0; k < tasks; k++) {
      const int64_t share = (batch * tasks + k) * directions + pass;
      const T* from_b = (const T*)f.partial_b + share * scan.cut.partial_size + chunk * size;
      const T* from_c = (const T*)f.partial_c + share * scan.cut.partial_size + chunk * size;
      const T* from_dt = (const T*)f.partial_dt + (share * chunks + chunk) * rank * kChunk;
      for (int64_t i = 0; i < used; i++) b[i] += from_b[i], c[i] += from_c[i];
      for (int64_t r = 0; r < rank; r++) {
        for (int64_t t = r * kChunk; t < r * kChunk + padded_steps; t++) dt[t] += from_dt[t];
      }
    }
    const int32_t* order = cross.orders + direction * scan.length + t0;
    const int64_t each = rank + 2 * states;
    for (int64_t t = 0; t < steps; t++) {
      T* to = (T*)f.grad_weights + ((batch * scan.length + order[t]) * cross.directions + direction) * each;
      for (int64_t r = 0; r < rank; r++) to[r] = dt[r * kChunk + t];
      for (int64_t n = 0; n < states; n++) {
        const int64_t group = t / (V / some) * (padded / some) + n / some;
        const int64_t at = group * V + t % (V / some) * some + n % some;
        to[rank + n] = b[at];
        to[rank + states + n] = c[at];
      }
    }
  }
}

}  // namespace VM_ISA
}  // namespace vision_mamba
