// What the forward and the backward scan share: the cut into tasks, the tiles of step sizes and inputs, and those of B and C.
#pragma once
#include "tile.h"

namespace vision_mamba {
namespace VM_ISA {

// Steps worked on before turning to the next block of channels, and between two stored states. Longer chunks read longer pieces of each row;
// at 32 the backward pass's tiles (forty-five kilobytes with 16 lanes) still fit the first-level cache, which measured as worth more.
static constexpr int64_t kChunk = 32;

// States kept in registers at once. The forward pass wants many, so that reading step sizes and writing sums is spread over them;
// the backward pass holds their gradients too, and sums `lanes` vectors at a time over channels, of as many states as `kBackStates`.
template <class T>
static constexpr int kBackStates = kLanes<T> < 4 ? kLanes<T> : 4;

VM_INLINE int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Row length of the [step][state] tiles of B and C.
template <class T>
VM_INLINE int64_t state_row(int64_t states) {
  return states == 1 ? 1 : round_up(states, kLanes<T> < 4 ? 4 : kLanes<T>);
}

template <class T>
static Partition make_partition(int64_t batch, int64_t channels, int64_t length, int64_t states, int64_t groups, int64_t least_tasks) {
  constexpr int V = kLanes<T>;
  Partition cut;
  cut.groups = groups;
  cut.group_channels = channels / groups;
  const int64_t blocks = round_up(cut.group_channels, V) / V;
  // Blocks worked on together share the tiles of B and C and the storage for their gradients; but some tasks come first,
  // or there would be nothing to give to threads.
  cut.blocks_per_task = 1;
  for (int64_t k = 2; k <= 8; k *= 2) {
    if (batch * groups * (round_up(blocks, k) / k) >= least_tasks) cut.blocks_per_task = k;
  }
  cut.tasks_per_group = round_up(blocks, cut.blocks_per_task) / cut.blocks_per_task;
  cut.chunks = round_up(length, kChunk) / kChunk;
  cut.padded_states = states == 1 ? 1 : round_up(states, 4);
  cut.partial_size = cut.chunks * kChunk * cut.padded_states;
  return cut;
}

// Fetches what will be written later: a store that misses the caches holds up those behind it.
template <class T>
VM_INLINE void fetch_to_write(const T* p, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(p + i, 1);
}

// One task: blocks of `lanes` channels of one batch entry and one group.
struct Task {
  int64_t batch, group, first_channel, blocks, last_channel;
};
template <class T>
static Task make_task(const Scan& scan, int64_t index) {
  const Partition& cut = scan.cut;
  Task task;
  const int64_t part = index % cut.tasks_per_group;
  task.group = index / cut.tasks_per_group % cut.groups;
  task.batch = index / cut.tasks_per_group / cut.groups;
  const int64_t start = part * cut.blocks_per_task * kLanes<T>;
  task.first_channel = task.group * cut.group_channels + start;
  const int64_t left = cut.group_channels - start;
  const int64_t most = cut.blocks_per_task * kLanes<T>;
  const int64_t channels = left < most ? left : most;
  task.last_channel = task.first_channel + channels;
  task.blocks = round_up(channels, kLanes<T>) / kLanes<T>;
  return task;
}

// B or C for `steps` steps as [step][state], states padded with zeros.
template <class T>
static void load_weights(T* tile, const Scan& scan, const Weights& w, int64_t batch, int64_t group, int64_t t0, int64_t steps,
                         int64_t ahead) {
  if (w.constant != nullptr) return;
  const int64_t row = state_row<T>(scan.states);
  const int64_t offset = group / (scan.cut.groups / w.groups) * w.group_stride;
  if (row == 1) {
    // One state: the row itself, without turning squares.
    Sequence flat = w.sequence;
    flat.row_stride = flat.time_stride;
    constexpr int V = kLanes<T>;
    for (int64_t t = 0; t < steps; t += V) {
      const int some = steps - t < V ? int(steps - t) : V;
      load_tile<T>(tile + t, V, flat, batch, t0 + t, some, 0, 1, 0, offset);
    }
    return;
  }
  for (int64_t n = 0; n < row; n += kLanes<T>) {
    const int64_t left = scan.states - n;
    const int some = left < 0 ? 0 : left < kLanes<T> ? int(left) : kLanes<T>;
    load_tile<T>(tile + n, row, w.sequence, batch, n, some, t0, steps, ahead, offset);
  }
}

// A (times log2 e, since decays are powers of two), or constant B or C, as [state][lane] for the block of channels at `channel`.
template <class T>
static void load_constant(T* out, const Scan& scan, const void* from, int64_t channel, int rows, T factor) {
  if (from == nullptr) return;
  const T* p = (const T*)from + channel * scan.states;
  for (int64_t n = 0; n < scan.cut.padded_states; n++) {
    vec<T> v = n < scan.states ? gather<T>(p + n, scan.states, rows) : vec<T>{};
    store<T>(out + n * kLanes<T>, v * factor);
  }
}

template <class T>
VM_INLINE vec<T> channel_values(const void* from, int64_t channel, int rows) {
  return from == nullptr ? vec<T>{} : load_some<T>((const T*)from + channel, rows);
}

// Of the states' vectors, lane by lane, the largest size.
template <class T>
static vec<T> largest(const T* a, int64_t states) {
  vec<T> most = {};
  for (int64_t n = 0; n < states; n++) {
    const vec<T> size = absv<T>(load(a + n * kLanes<T>));
    most = larger<T>(size, most);
  }
  return most;
}

// Step sizes through softplus; `slope`, if given, is the derivative of that.
template <class T>
static void soften(T* dt, T* slope, int64_t steps) {
  constexpr int V = kLanes<T>;
  if (slope == nullptr) {
    for (int64_t t = 0; t < steps; t++) {
      const vec<T> x = load(dt + t * V);
      store<T>(dt + t * V, softplus<T>(x, soft_rest<T>(x)));
    }
    return;
  }
  for (int64_t t = 0; t < steps; t++) {
    const vec<T> x = load(dt + t * V), e = soft_rest<T>(x);
    store<T>(dt + t * V, softplus<T>(x, e));
    store<T>(slope + t * V, softplus_slope<T>(x, e));
  }
}

// The step sizes of a block: delta + bias, through softplus if asked for; `slope`, if given, is the derivative of that.
template <class T>
static void load_steps(T* dt, T* slope, const Scan& scan, int64_t batch, int64_t channel, int rows, int64_t t0, int64_t steps,
                       int64_t ahead) {
  constexpr int V = kLanes<T>;
  load_tile<T>(dt, V, scan.delta, batch, channel, rows, t0, steps, ahead);
  if (scan.delta_bias != nullptr) {
    const vec<T> bias = channel_values<T>(scan.delta_bias, channel, rows);
    for (int64_t t = 0; t < steps; t++) store<T>(dt + t * V, load(dt + t * V) + bias);
  }
  if (scan.softplus) soften<T>(dt, slope, steps);
}

}  // namespace VM_ISA
}  // namespace vision_mamba
