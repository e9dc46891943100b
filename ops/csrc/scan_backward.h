// The backward scan. Chunks of time are taken last to first; the states of a chunk are recomputed from the one stored at its start, kept
// in the first-level cache, and walked back. With g the gradient of the state h[t] and w what comes from later steps:
//   g = w + dy C;  dB = sum over channels of g x;  dC = sum over channels of dy h;  gx += g B       (x = dt u)
//   w = g decay;   q = w h[t-1], the gradient of dt A;  gdt += q A;  dA += q dt
// Sums over channels: each lane sum is formed by a butterfly over `lanes` vectors at once and added to the task's own store. A second
// pass (`merge_weights`) adds the tasks' stores in a fixed order.
#pragma once
#include "scan_common.h"

namespace vision_mamba {
namespace VM_ISA {

// Tiles of one block of channels over a chunk, [step][lane] each.
template <class T>
struct Tiles {
  T *dt, *slope, *u, *x, *dy, *gdt, *gx, *y, *z, *gz;
  T *h, *decay;  // [step][state][lane]; h starts with the state before the chunk
};

template <class T>
struct BackBlock {
  int64_t steps;  // rounded up to a multiple of the lanes; the steps added have dt = u = dy = 0
  const T *a, *b, *c;
  int64_t row;           // of b and c where they vary
  T *carry, *ga, *gb, *gc;  // [state][lane]; gb and gc where B and C are constant
  T *sum_b, *sum_c;      // the task's store where they vary
  int64_t sum_step;      // distance in it between groups of steps
  bool first;            // of the blocks that share the task's store, which holds nothing yet
  vec<T> limit;          // a longer step decays to zero all the same
};

// The first share of a sum, or one more.
template <class T>
VM_INLINE void put(T* sum, vec<T> share, bool first) {
  store<T>(sum, first ? share : load(sum) + share);
}

template <class T, int N, bool VaryingB, bool VaryingC, bool Gated>
static void retreat(const BackBlock<T>& k, const Tiles<T>& tile) {
  constexpr int V = kLanes<T>;
  constexpr int G = V / N;  // steps whose sums over channels fill a vector
  vec<T> h[N], a[N], gc[N];
  for (int n = 0; n < N; n++) h[n] = load(tile.h + n * V), a[n] = load(k.a + n * V), gc[n] = vec<T>{};
  for (int64_t group = 0; group < k.steps / G; group++) {
    vec<T> products[V];
#pragma GCC unroll 16
    for (int i = 0; i < G; i++) {
      const int64_t t = group * G + i;
      const vec<T> d = smaller<T>(k.limit, load(tile.dt + t * V)), x = load(tile.x + t * V), dy = load(tile.dy + t * V);
      vec<T> y = Gated ? load(tile.y + t * V) : vec<T>{};
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) {
        const vec<T> decay = decay_of(d, a[n]);
        const vec<T> bn = VaryingB ? splat(k.b[t * k.row + n]) : load(k.b + n * V);
        h[n] = decay * h[n] + x * bn;
        store<T>(tile.decay + (t * N + n) * V, decay);
        store<T>(tile.h + ((t + 1) * N + n) * V, h[n]);
        if (VaryingC) products[i * N + n] = dy * h[n];
        if (!VaryingC) gc[n] += dy * h[n];
        if (Gated) y += h[n] * (VaryingC ? splat(k.c[t * k.row + n]) : load(k.c + n * V));
      }
      if (Gated) store<T>(tile.y + t * V, y);
    }
    if (VaryingC) put<T>(k.sum_c + group * k.sum_step, sums<T>(products), k.first);
  }

  vec<T> w[N], ga[N], gb[N];
  for (int n = 0; n < N; n++) w[n] = load(k.carry + n * V), ga[n] = gb[n] = vec<T>{};
  for (int64_t group = k.steps / G - 1; group >= 0; group--) {
    vec<T> products[V];
#pragma GCC unroll 16
    for (int i = G - 1; i >= 0; i--) {
      const int64_t t = group * G + i;
      const vec<T> d = load(tile.dt + t * V), x = load(tile.x + t * V), dy = load(tile.dy + t * V);
      vec<T> gdt = load(tile.gdt + t * V), gx = load(tile.gx + t * V);
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) {
        const vec<T> bn = VaryingB ? splat(k.b[t * k.row + n]) : load(k.b + n * V);
        const vec<T> cn = VaryingC ? splat(k.c[t * k.row + n]) : load(k.c + n * V);
        const vec<T> g = w[n] + dy * cn;
        gx += g * bn;
        if (VaryingB) products[i * N + n] = g * x;
        if (!VaryingB) gb[n] += g * x;
        w[n] = g * load(tile.decay + (t * N + n) * V);
        const vec<T> q = w[n] * load(tile.h + (t * N + n) * V);
        gdt += q * a[n];
        ga[n] += q * d;
      }
      store<T>(tile.gdt + t * V, gdt);
      store<T>(tile.gx + t * V, gx);
    }
    if (VaryingB) put<T>(k.sum_b + group * k.sum_step, sums<T>(products), k.first);
  }
  for (int n = 0; n < N; n++) {
    store<T>(k.carry + n * V, w[n]);
    store<T>(k.ga + n * V, load(k.ga + n * V) + ga[n]);
    if (!VaryingB) store<T>(k.gb + n * V, load(k.gb + n * V) + gb[n]);
    if (!VaryingC) store<T>(k.gc + n * V, load(k.gc + n * V) + gc[n]);
  }
}

// The states of a block, `kBackStates` at a time. `states_before` is (N, D) at this block's channel; those of the chunk that comes next, `ahead`
// elements away, are fetched meanwhile: rows far apart, which no prefetcher of the processor's finds.
template <class T, bool VaryingB, bool VaryingC, bool Gated>
static void retreat_all(const Scan& scan, const BackBlock<T>& all, const Tiles<T>& tile, const T* states_before, int64_t ahead, int rows) {
  constexpr int V = kLanes<T>;
  constexpr int most = kBackStates<T>;
  const int64_t padded = scan.cut.padded_states;
  for (int64_t n = 0; n < scan.states; n++) __builtin_prefetch(states_before + ahead + n * scan.channels);
  for (int64_t n = 0; n < padded;) {
    const int some = padded - n >= most ? most : 1;
    BackBlock<T> k = all;
    k.limit = kDecayRange<T> / largest<T>(all.a + n * V, some);
    k.a += n * V;
    k.b += VaryingB ? n : n * V;
    k.c += VaryingC ? n : n * V;
    k.carry += n * V;
    k.ga += n * V;
    k.gb += n * V;
    k.gc += n * V;
    // The store is [group of steps][group of states][lane], see `merge_weights`.
    k.sum_b += n / some * V;
    k.sum_c += n / some * V;
    k.sum_step = padded / some * V;
    for (int i = 0; i < some; i++) {
      store<T>(tile.h + i * V, n + i < scan.states ? load_some<T>(states_before + (n + i) * scan.channels, rows) : vec<T>{});
    }
    if (some == 1) {
      retreat<T, 1, VaryingB, VaryingC, Gated>(k, tile);
    } else {
      retreat<T, most, VaryingB, VaryingC, Gated>(k, tile);
    }
    n += some;
  }
}

template <class T>
static void retreat_any(const Scan& scan, const BackBlock<T>& k, const Tiles<T>& tile, const T* before, int64_t ahead, int rows) {
  const bool b = scan.b.constant == nullptr, c = scan.c.constant == nullptr, z = scan.z.data != nullptr;
  if (b && c && z) return retreat_all<T, true, true, true>(scan, k, tile, before, ahead, rows);
  if (b && c) return retreat_all<T, true, true, false>(scan, k, tile, before, ahead, rows);
  if (b && z) return retreat_all<T, true, false, true>(scan, k, tile, before, ahead, rows);
  if (b) return retreat_all<T, true, false, false>(scan, k, tile, before, ahead, rows);
  if (c && z) return retreat_all<T, false, true, true>(scan, k, tile, before, ahead, rows);
  if (c) return retreat_all<T, false, true, false>(scan, k, tile, before, ahead, rows);
  if (z) return retreat_all<T, false, false, true>(scan, k, tile, before, ahead, rows);
  return retreat_all<T, false, false, false>(scan, k, tile, before, ahead, rows);
}

// Step sizes, inputs and the gradient that arrives at y, for a block and a chunk; the sums start at zero.
template <class T>
static void load_back_tiles(const Tiles<T>& tile, const ScanBackward& f, int64_t batch, int64_t channel, int rows, int64_t t0,
                            int64_t steps, int64_t padded_steps) {
  constexpr int V = kLanes<T>;
  const Scan& scan = f.scan;
  load_steps<T>(tile.dt, tile.slope, scan, batch, channel, rows, t0, steps, -kChunk);
  load_tile<T>(tile.u, V, scan.u, batch, channel, rows, t0, steps, -kChunk);
  if (f.grad_out.data != nullptr) load_tile<T>(tile.dy, V, f.grad_out, batch, channel, rows, t0, steps, -kChunk);
  if (scan.z.data != nullptr) load_tile<T>(tile.z, V, scan.z, batch, channel, rows, t0, steps, -kChunk);
  const vec<T> skip = channel_values<T>(scan.d, channel, rows);
  for (int64_t t = 0; t < steps; t++) {
    const vec<T> u = load(tile.u + t * V);
    store<T>(tile.x + t * V, load(tile.dt + t * V) * u);
    if (f.grad_out.data == nullptr) store<T>(tile.dy + t * V, vec<T>{});
    if (scan.z.data != nullptr) {
      const vec<T> z = load(tile.z + t * V), s = sigmoid<T>(z), dout = load(tile.dy + t * V);
      store<T>(tile.dy + t * V, dout * (z * s));
      store<T>(tile.gz + t * V, dout * (s + z * s * (T(1) - s)));  // times y, once that is known
      store<T>(tile.y + t * V, skip * u);
    }
    store<T>(tile.gdt + t * V, vec<T>{});
    store<T>(tile.gx + t * V, vec<T>{});
  }
  T* const padded[] = {tile.dt, tile.x, tile.dy, tile.y, tile.gdt, tile.gx};
  for (int64_t t = steps; t < padded_steps; t++) {
    for (T* p : padded) store<T>(p + t * V, vec<T>{});
  }
}

// Turns the sums of a block and chunk into gradients and stores them; adds to those of D and the bias.
template <class T>
static void store_back_tiles(const Tiles<T>& tile, const ScanBackward& f, int64_t batch, int64_t channel, int rows, int64_t t0,
                             int64_t steps, T* gd, T* gbias) {
  constexpr int V = kLanes<T>;
  const Scan& scan = f.scan;
  const vec<T> skip = channel_values<T>(scan.d, channel, rows);
  vec<T> sum_d = {}, sum_bias = {};
  for (int64_t t = 0; t < steps; t++) {
    const vec<T> u = load(tile.u + t * V), dy = load(tile.dy + t * V), gx = load(tile.gx + t * V);
    vec<T> gdelta = load(tile.gdt + t * V) * kLn2<T> + gx * u;
    if (scan.softplus) gdelta *= load(tile.slope + t * V);
    store<T>(tile.gdt + t * V, gdelta);
    store<T>(tile.gx + t * V, gx * load(tile.dt + t * V) + skip * dy);
    if (scan.z.data != nullptr) store<T>(tile.gz + t * V, load(tile.gz + t * V) * load(tile.y + t * V));
    sum_d += dy * u;
    sum_bias += gdelta;
  }
  store<T>(gd, load(gd) + sum_d);
  store<T>(gbias, load(gbias) + sum_bias);
  store_tile<T>(tile.gx, V, f.grad_u, batch, channel, rows, t0, steps, -kChunk);
  store_tile<T>(tile.gdt, V, f.grad_delta, batch, channel, rows, t0, steps, -kChunk);
  if (scan.z.data != nullptr) store_tile<T>(tile.gz, V, f.grad_z, batch, channel, rows, t0, steps, -kChunk);
}

template <class T>
static void store_state_sums(void* to, const Scan& scan, const Task& task, int64_t channel, int rows, const T* from) {
  if (to == nullptr) return;
  T* p = (T*)to + (task.batch * scan.channels + channel) * scan.states;
  for (int64_t n = 0; n < scan.states; n++) scatter<T>(p + n, scan.states, load(from + n * kLanes<T>), rows);
}

template <class T>
static void scan_backward(const ScanBackward& f, int64_t first, int64_t last) {
  constexpr int V = kLanes<T>;
  const Scan& scan = f.scan;
  const int64_t padded = scan.cut.padded_states, row = state_row<T>(scan.states), blocks = scan.cut.blocks_per_task;
  const int64_t tile_size = kChunk * V, state_size = blocks * padded * V;
  [[maybe_unused]] FlushDenormals flush;
  Scratch scratch(sizeof(T) * size_t((10 + 2 * kBackStates<T>)*tile_size + 16 * V + 2 * kChunk * row + 7 * state_size + 2 * blocks * V + 256));
  Tiles<T> tile;
  T** const tiles[] = {&tile.dt, &tile.slope, &tile.u, &tile.x, &tile.dy, &tile.gdt, &tile.gx, &tile.y, &tile.z, &tile.gz};
  for (T** p : tiles) *p = scratch.take<T>(tile_size);
  tile.decay = scratch.take<T>(tile_size * kBackStates<T>);
  tile.h = scratch.take<T>((tile_size + V) * kBackStates<T>);
  T *bt = scratch.take<T>(kChunk * row), *ct = scratch.take<T>(kChunk * row);
  T *a = scratch.take<T>(state_size), *bk = scratch.take<T>(state_size), *ck = scratch.take<T>(state_size);
  T *carry = scratch.take<T>(state_size), *ga = scratch.take<T>(state_size);
  T *gb = scratch.take<T>(state_size), *gc = scratch.take<T>(state_size);
  T *gd = scratch.take<T>(blocks * V), *gbias = scratch.take<T>(blocks * V);

  for (int64_t index = first; index < last; index++) {
    const Task task = make_task<T>(scan, index);
    for (int64_t i = 0; i < state_size; i++) carry[i] = ga[i] = gb[i] = gc[i] = T(0);
    for (int64_t i = 0; i < blocks * V; i++) gd[i] = gbias[i] = T(0);
    for (int64_t k = 0; k < task.blocks; k++) {
      const int64_t channel = task.first_channel + k * V, at = k * padded * V;
      const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
      load_constant<T>(a + at, scan, scan.a, channel, rows, kLog2e<T>);
      load_constant<T>(bk + at, scan, scan.b.constant, channel, rows, T(1));
      load_constant<T>(ck + at, scan, scan.c.constant, channel, rows, T(1));
      if (f.grad_last_state != nullptr) {
        const T* from = (const T*)f.grad_last_state + (task.batch * scan.channels + channel) * scan.states;
        for (int64_t n = 0; n < scan.states; n++) store<T>(carry + at + n * V, gather<T>(from + n, scan.states, rows));
      }
    }
    for (int64_t chunk = scan.cut.chunks - 1; chunk >= 0; chunk--) {
      const int64_t t0 = chunk * kChunk;
      const int64_t steps = scan.length - t0 < kChunk ? scan.length - t0 : kChunk;
      const int64_t padded_steps = round_up(steps, V);
      load_weights<T>(bt, scan, scan.b, task.batch, task.group, t0, steps, -kChunk);
      load_weights<T>(ct, scan, scan.c, task.batch, task.group, t0, steps, -kChunk);
      for (int64_t i = steps * row; i < padded_steps * row; i++) bt[i] = ct[i] = T(0);
      T *sum_b = nullptr, *sum_c = nullptr;
      const int64_t share = index * scan.cut.partial_size + chunk * kChunk * padded;
      if (f.partial_b != nullptr) sum_b = (T*)f.partial_b + share;
      if (f.partial_c != nullptr) sum_c = (T*)f.partial_c + share;
      if (chunk > 0 && sum_b != nullptr) fetch_to_write<T>(sum_b - kChunk * padded, kChunk * padded);
      if (chunk > 0 && sum_c != nullptr) fetch_to_write<T>(sum_c - kChunk * padded, kChunk * padded);
      for (int64_t k = 0; k < task.blocks; k++) {
        const int64_t channel = task.first_channel + k * V, at = k * padded * V;
        const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
        load_back_tiles<T>(tile, f, task.batch, channel, rows, t0, steps, padded_steps);
        BackBlock<T> block;
        block.steps = padded_steps;
        block.a = a + at;
        block.b = scan.b.constant == nullptr ? bt : bk + at;
        block.c = scan.c.constant == nullptr ? ct : ck + at;
        block.row = row;
        block.carry = carry + at;
        block.ga = ga + at;
        block.gb = gb + at;
        block.gc = gc + at;
        block.sum_b = sum_b;
        block.sum_c = sum_c;
        block.first = k == 0;
        const T* before = (const T*)f.checkpoints + (task.batch * scan.cut.chunks + chunk) * scan.states * scan.channels + channel;
        retreat_any<T>(scan, block, tile, before, chunk > 0 ? -scan.states * scan.channels : 0, rows);
        store_back_tiles<T>(tile, f, task.batch, channel, rows, t0, steps, gd + k * V, gbias + k * V);
      }
    }
    for (int64_t k = 0; k < task.blocks; k++) {
      const int64_t channel = task.first_channel + k * V, at = k * padded * V;
      const int rows = task.last_channel - channel < V ? int(task.last_channel - channel) : V;
      store_state_sums<T>(f.grad_a, scan, task, channel, rows, ga + at);
      store_state_sums<T>(f.grad_b_constant, scan, task, channel, rows, gb + at);
      store_state_sums<T>(f.grad_c_constant, scan, task, channel, rows, gc + at);
      T* to_d = (T*)f.grad_d + task.batch * scan.channels + channel;
      T* to_bias = (T*)f.grad_delta_bias + task.batch * scan.channels + channel;
      if (f.grad_d != nullptr) store_some<T>(to_d, load(gd + k * V), rows);
      if (f.grad_delta_bias != nullptr) store_some<T>(to_bias, load(gbias + k * V), rows);
    }
  }
}

// Adds, for each (batch, group of the weights, chunk), the stores of the tasks that share those weights, and puts the sums in place.
template <class T>
static void merge_weights(const Scan& scan, const Weights& gradient, const void* partial, int64_t first, int64_t last) {
  constexpr int V = kLanes<T>;
  const Partition& cut = scan.cut;
  const int64_t padded = cut.padded_states, size = kChunk * padded, row = state_row<T>(scan.states);
  const int some = padded >= kBackStates<T> ? kBackStates<T> : 1;
  const int64_t tasks = cut.groups / gradient.groups * cut.tasks_per_group;
  Scratch scratch(sizeof(T) * size_t(size + (kChunk + V) * (row + V) + 64));
  T *sum = scratch.take<T>(size), *tile = scratch.take<T>((kChunk + V) * (row + V));
  for (int64_t item = first; item < last; item++) {
    const int64_t chunk = item % cut.chunks, share = item / cut.chunks;  // share counts (batch, group of the weights)
    const int64_t t0 = chunk * kChunk, steps = scan.length - t0 < kChunk ? scan.length - t0 : kChunk;
    const T* from = (const T*)partial + share * tasks * cut.partial_size + chunk * size;
    const int64_t used = round_up(steps, V) * padded;
    for (int64_t i = 0; i < used; i++) sum[i] = from[i];
    for (int64_t k = 1; k < tasks; k++) {
      for (int64_t i = 0; i < used; i++) sum[i] += from[k * cut.partial_size + i];
    }
    for (int64_t t = 0; t < steps; t++) {
      for (int64_t n = 0; n < scan.states; n++) {
        const int64_t group = t / (V / some) * (padded / some) + n / some;
        tile[t * row + n] = sum[group * V + t % (V / some) * some + n % some];
      }
    }
    const int64_t batch = share / gradient.groups, offset = share % gradient.groups * gradient.group_stride;
    for (int64_t n = 0; n < scan.states; n += V) {
      const int rows = scan.states - n < V ? int(scan.states - n) : V;
      store_tile<T>(tile + n, row, gradient.sequence, batch, n, rows, t0, steps, kChunk, offset);
    }
  }
}

}  // namespace VM_ISA
}  // namespace vision_mamba
