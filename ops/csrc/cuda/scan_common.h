// What the scans' kernels share.
//
// A block of threads takes neighbouring channels of one sequence, P threads a channel with S states each in registers, and walks along time in
// chunks of 32 steps. A chunk's step sizes, inputs, B and C lie in shared memory, made once and read by all. Where there are too few channels to
// fill the GPU, time is cut into segments: one pass finds each segment's final state from zero and its decay, one adds these up along time, and the
// last pass starts each segment from the state that reaches it.
#pragma once
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "../params.h"
#include "gpu.h"

namespace vision_mamba {

constexpr int kChunk = 32;  // steps between two stored states; the same as on the CPU, so that Meta has one answer
constexpr int kSub = 8;     // steps whose states the backward pass holds in registers
constexpr int kRankTile = 16;
#ifndef VM_POLYNOMIALS
#define VM_POLYNOMIALS 0
#endif

// S states a thread, P threads a channel. `varying`: B and C are both known to vary along time.
template <int S_, int P_, bool cross_, bool varying_>
struct Form {
  static constexpr int S = S_, P = P_, threads = P == 1 ? 64 : 128, channels = threads / P, warps = threads / 32;
  static constexpr int lanes = P < 32 ? 32 / P : 1;  // channels of a warp
  static constexpr int states = S * P, width = channels + 1, row = 2 * states + 4;
  // A thread moves a tile in pieces, as many elements as registers hold well.
  static constexpr int all = channels * kChunk / threads, elements = all < 8 ? all : 8, pieces = all / elements;
  static constexpr bool cross = cross_, varying = varying_;
  // float2 tile, B and C, tokens, ranks; the backward pass adds two tiles and the warps' sums.
  static constexpr int base = kChunk * width * 2 + kChunk * row + kChunk + (cross ? kChunk * kRankTile : 0);
  static constexpr size_t forward_bytes = sizeof(float) * base;
  static constexpr size_t backward_bytes = sizeof(float) * (base + 2 * kChunk * width + warps * kSub * 2 * states);
};

struct Job {
  int64_t batch, channels, length, states;
  int64_t groups, group_channels, group_blocks;  // channels of one group share B and C; a block never crosses a group
  int64_t chunks, segments, segment_chunks;
  Sequence u, delta, z;
  Weights b, c;
  const float *a, *d, *bias;
  bool softplus;
  // Several directions: `u` is (batch, channel, token), `weights` (batch, number, token), `tokens[k][step]`.
  int64_t directions, first_direction, launch_directions, rank;
  int64_t u_direction, weights_direction;
  int token_words;  // of four bytes that a token's numbers are, 0 where they cannot be read as such (warp_common.h)
  Sequence weights;
  const float* dt_weight;  // (K, R, D)
  const int32_t* orders;
  // One slot a (batch, direction).
  float *carry, *sums;  // (slot, segment, N, D), (slot, segment, D)
  float* checkpoints;   // (slot, chunk, N, D)
  Sequence out;
  float* last_state;  // (B, D, N)
  bool add;           // to what stands in `out` or `grad_u`
  // Backward.
  Sequence grad_out, grad_u, grad_delta, grad_z;
  const float* grad_last_state;
  float *grad_a, *grad_b, *grad_c;  // (slot, segment, D, N), the last two for constant weights
  float *grad_d, *grad_bias;        // (slot, segment, D)
  void* partial;                    // (launch slot, block of channels, step, 2 N), of `partial_type`
  Scalar partial_type;
};

// Where a block works.
struct Place {
  int64_t b, k, slot, launch_slot, segment, block, group, channel, first_chunk, last_chunk;
  int count;  // channels
};
template <class F>
__device__ __forceinline__ Place place(const Job& j) {
  Place p;
  int64_t i = block_index();
  const int64_t blocks = j.groups * j.group_blocks;
  p.block = i % blocks, i /= blocks;
  p.segment = i % j.segments, i /= j.segments;
  p.launch_slot = i;
  p.k = j.first_direction + i % j.launch_directions;
  p.b = i / j.launch_directions;
  p.slot = p.b * j.directions + p.k;
  p.group = p.block / j.group_blocks;
  const int64_t within = p.block % j.group_blocks * F::channels;
  p.channel = p.group * j.group_channels + within;
  const int64_t left = j.group_channels - within;
  p.count = int(left < F::channels ? left : F::channels);
  p.first_chunk = p.segment * j.segment_chunks;
  p.last_chunk = p.first_chunk + j.segment_chunks < j.chunks ? p.first_chunk + j.segment_chunks : j.chunks;
  return p;
}

// The element type is asked once for many elements, so that their loads are under way together.
template <class Body>
__device__ __forceinline__ void with_type(Scalar type, const Body& body) {
  if (type == Scalar::f32) {
    body(float(0));
  } else if (type == Scalar::bf16) {
    body(c10::BFloat16(0.f));
  } else {
    body(c10::Half(0.f));
  }
}

// Which channels and steps of the tile a thread moves. Neighbouring threads take what lies next to each other in memory.
template <class F>
struct Walk {
  int c, t, next_c, next_t;
  __device__ __forceinline__ Walk(bool time_first, int piece) {
    const int i = thread_index();
    c = time_first ? i / kChunk : i % F::channels, t = time_first ? i % kChunk : i / F::channels;
    next_c = time_first ? F::threads / kChunk : 0, next_t = time_first ? 0 : F::threads / F::channels;
    c += piece * F::elements * next_c, t += piece * F::elements * next_t;
  }
  __device__ __forceinline__ void step() { c += next_c, t += next_t; }
};

template <class F>
__device__ __forceinline__ void fetch(float (&r)[F::elements], const Sequence& s, int64_t offset, const Place& p, int64_t t0, int steps,
                                      const int* tokens, int piece) {
  Walk<F> w(s.time_stride == 1 && tokens == nullptr, piece);
  with_type(s.type, [&](auto tag) {
    using X = decltype(tag);
    const X* from = static_cast<const X*>(s.data) + offset + (p.channel + w.c) * s.row_stride;
    if (tokens == nullptr) from += (t0 + w.t) * s.time_stride;
    const int64_t next = w.next_c * s.row_stride + w.next_t * s.time_stride;
#pragma unroll
    for (int i = 0; i < F::elements; i++, w.step()) {
      const bool there = w.c < p.count && w.t < steps;
      if (tokens != nullptr) {
        r[i] = there ? float(from[tokens[w.t] * s.time_stride]) : 0.f;
      } else {
        r[i] = there ? float(from[i * next]) : 0.f;
      }
    }
  });
}
template <class F>
__device__ __forceinline__ void put(float* tile, int size, const float (&r)[F::elements], bool time_first, int piece) {
  Walk<F> w(time_first, piece);
#pragma unroll
  for (int i = 0; i < F::elements; i++, w.step()) tile[(w.t * F::width + w.c) * size] = r[i];
}
// `value(c, t, element)` of a piece into the sequence.
template <class F, class Value>
__device__ __forceinline__ void store(const Sequence& s, int64_t offset, const Place& p, int64_t t0, int steps, const int* tokens, bool add,
                                      int piece, const Value& value) {
  Walk<F> w(s.time_stride == 1 && tokens == nullptr, piece);
  with_type(s.type, [&](auto tag) {
    using X = decltype(tag);
    X* to = static_cast<X*>(s.data) + offset + (p.channel + w.c) * s.row_stride;
    if (tokens == nullptr) to += (t0 + w.t) * s.time_stride;
    const int64_t next = w.next_c * s.row_stride + w.next_t * s.time_stride;
#pragma unroll
    for (int i = 0; i < F::elements; i++, w.step()) {
      if (w.c >= p.count || w.t >= steps) continue;
      X& x = tokens != nullptr ? to[tokens[w.t] * s.time_stride] : to[i * next];
      const float y = value(w.c, w.t, i);
      x = X(add ? float(x) + y : y);
    }
  });
}

constexpr float kLog2e = 1.4426950408889634f;

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), the logarithm as a polynomial in e^-|x|, which is at most 1: minimax in relative error, 5e-9 before rounding.
// Within 5e-7 of the exact value, relatively, for x above -16; a step smaller than that has e^x's own error, |x| 6e-8.
__device__ __forceinline__ float softplus(float x) {
  const float e = fast_exp2(-fabsf(x) * kLog2e);
  float y = fmaf(e, -3.2440233e-3f, 1.9851453e-2f);
  y = fmaf(y, e, -5.6959517e-2f);
  y = fmaf(y, e, 1.0603654e-1f);
  y = fmaf(y, e, -1.5305592e-1f);
  y = fmaf(y, e, 1.9675939e-1f);
  y = fmaf(y, e, -2.4954134e-1f);
  y = fmaf(y, e, 3.3329964e-1f);
  y = fmaf(y, e, -4.9999902e-1f);
  y = fmaf(y, e, 1.f);
  // Not fmaxf, which would lose a NaN.
  return fmaf(y, e, x < 0.f ? 0.f : x);
}
// The derivative of the softplus from its value, 1 - e^-y. Small values need a polynomial: the difference would cancel.
__device__ __forceinline__ float softplus_slope(float value) {
  float y = fmaf(value, -1.1216349e-3f, 8.1873862e-3f);
  y = fmaf(y, value, -4.1629091e-2f);
  y = fmaf(y, value, 1.6666225e-1f);
  y = fmaf(y, value, -4.9999982e-1f);
  y = fmaf(y, value, 1.f);
  return choose(value < 0.5f, y * value, 1.f - fast_exp2(-value * kLog2e));
}
__device__ __forceinline__ float sigmoid(float x) { return fast_reciprocal(1.f + fast_exp2(-x * kLog2e)); }

// 2^x for |x| well below 2^22, on the pipes for products: the special-function unit does 16 a clock. Minimax on [-1/2, 1/2], exactly 1 at 0.
__device__ __forceinline__ float polynomial_exp2(float x) {
  x = fminf(fmaxf(x, -125.f), 127.f);
  const float shifted = x + 12582912.f;
  const float f = x - (shifted - 12582912.f);
  float y = fmaf(f, 1.339887440e-3f, 9.618437357e-3f);
  y = fmaf(y, f, 5.550332471e-2f);
  y = fmaf(y, f, 2.402264791e-1f);
  y = fmaf(y, f, 6.931472028e-1f);
  y = fmaf(y, f, 1.f);
  return exp2_by_bits(y, shifted);
}
template <class F>
__device__ __forceinline__ float decay_of(int i, float x) {
  return i < VM_POLYNOMIALS && F::S > 1 ? polynomial_exp2(x) : fast_exp2(x);
}

// Shared memory of a block.
template <class F>
struct Shared {
  float* steps;  // [t][channel] step size and input, in pairs
  float* bc;     // [t] B, then C
  int* tokens;   // [t]
  float* ranks;  // [t][16]
  float* rest;
  __device__ __forceinline__ Shared() {
    steps = reinterpret_cast<float*>(shared_memory());
    bc = steps + kChunk * F::width * 2;
    tokens = reinterpret_cast<int*>(bc + kChunk * F::row);
    ranks = reinterpret_cast<float*>(tokens + kChunk);
    rest = ranks + (F::cross ? kChunk * kRankTile : 0);
  }
  __device__ __forceinline__ const int* order() const { return F::cross ? tokens : nullptr; }
  __device__ __forceinline__ float2& step(int t, int c) const { return reinterpret_cast<float2*>(steps)[t * F::width + c]; }
};

template <class F>
__device__ __forceinline__ void load_weights(float* tile, const Sequence& s, int64_t offset, int64_t states, int64_t t0, int steps,
                                             const int* tokens) {
  const bool time_first = s.time_stride == 1 && tokens == nullptr;
  with_type(s.type, [&](auto tag) {
    using X = decltype(tag);
    const X* from = static_cast<const X*>(s.data) + offset;
#pragma unroll 4
    for (int e = thread_index(); e < kChunk * F::states; e += F::threads) {
      const int t = time_first ? e % kChunk : e / F::states, n = time_first ? e / kChunk : e % F::states;
      const int64_t time = tokens != nullptr ? tokens[t] : t0 + t;
      tile[t * F::row + n] = n < states && t < steps ? float(from[n * s.row_stride + time * s.time_stride]) : 0.f;
    }
  });
}

// Fills the tiles with a chunk. Steps behind the end get a step size of zero, which leaves every state as it is. The caller has passed a barrier since
// the tiles were last read, and passes one before reading them.
template <class F>
__device__ __forceinline__ void load_chunk(const Job& j, const Place& p, const Shared<F>& m, int64_t t0, int steps) {
  const int64_t weights = p.b * j.weights.batch_stride + p.k * j.weights_direction;
  if constexpr (F::cross) {
    for (int t = thread_index(); t < kChunk; t += F::threads) {
      // Orders lie on the GPU and cannot be checked without waiting for it: at least nothing outside of memory is touched.
      const int64_t token = t < steps ? j.orders[p.k * j.length + t0 + t] : 0;
      m.tokens[t] = int(token < 0 ? 0 : token >= j.length ? j.length - 1 : token);
    }
    sync_block();
    load_weights<F>(m.bc, j.weights, weights + j.rank, j.states, t0, steps, m.tokens);
    load_weights<F>(m.bc + F::states, j.weights, weights + j.rank + j.states, j.states, t0, steps, m.tokens);
  } else {
    if (F::varying || j.b.constant == nullptr) {
      const int64_t group = p.group / (j.groups / j.b.groups);
      load_weights<F>(m.bc, j.b.sequence, p.b * j.b.sequence.batch_stride + group * j.b.group_stride, j.states, t0, steps, nullptr);
    }
    if (F::varying || j.c.constant == nullptr) {
      const int64_t group = p.group / (j.groups / j.c.groups);
      load_weights<F>(m.bc + F::states, j.c.sequence, p.b * j.c.sequence.batch_stride + group * j.c.group_stride, j.states, t0, steps, nullptr);
    }
  }
#pragma unroll 1
  for (int piece = 0; piece < F::pieces; piece++) {
    float u[F::elements], dt[F::elements];
    fetch<F>(u, j.u, p.b * j.u.batch_stride + p.k * j.u_direction, p, t0, steps, m.order(), piece);
    const bool time_first = !F::cross && j.delta.time_stride == 1;
    if constexpr (F::cross) {
      Walk<F> w(false, piece);
      const int64_t channel = p.channel + (w.c < p.count ? w.c : 0);
      const float bias = j.bias != nullptr ? j.bias[p.k * j.channels + channel] : 0.f;
#pragma unroll
      for (int i = 0; i < F::elements; i++) dt[i] = bias;
      for (int64_t r0 = 0; r0 < j.rank; r0 += kRankTile) {
        const int ranks = int(j.rank - r0 < kRankTile ? j.rank - r0 : kRankTile);
        if (piece == 0 || j.rank > kRankTile) {
          if (piece + r0 > 0) sync_block();
          with_type(j.weights.type, [&](auto tag) {
            using X = decltype(tag);
            const X* from = static_cast<const X*>(j.weights.data) + weights + r0;
            for (int e = thread_index(); e < kChunk * kRankTile; e += F::threads) {
              const int t = e / kRankTile, r = e % kRankTile;
              m.ranks[e] = r < ranks && t < steps ? float(from[r + m.tokens[t] * j.weights.time_stride]) : 0.f;
            }
          });
          sync_block();
        }
        const float* column = j.dt_weight + (p.k * j.rank + r0) * j.channels + channel;
        for (int r = 0; r < ranks; r++) {
          const float weight = column[r * j.channels];
#pragma unroll
          for (int i = 0; i < F::elements; i++) dt[i] = fmaf(m.ranks[(w.t + i * w.next_t) * kRankTile + r], weight, dt[i]);
        }
      }
    } else {
      fetch<F>(dt, j.delta, p.b * j.delta.batch_stride, p, t0, steps, nullptr, piece);
      if (j.bias != nullptr) {
        Walk<F> w(time_first, piece);
#pragma unroll
        for (int i = 0; i < F::elements; i++, w.step()) dt[i] += w.c < p.count ? j.bias[p.channel + w.c] : 0.f;
      }
    }
    Walk<F> w(time_first, piece);
#pragma unroll
    for (int i = 0; i < F::elements; i++, w.step()) {
      if (j.softplus) dt[i] = softplus(dt[i]);
      if (w.c >= p.count || w.t >= steps) dt[i] = 0.f;
    }
    put<F>(m.steps, 2, dt, time_first, piece);
    put<F>(m.steps + 1, 2, u, j.u.time_stride == 1 && !F::cross, piece);
  }
}

// A thread's S numbers of a row of B or C.
template <int S>
__device__ __forceinline__ void read(float (&to)[S], const float* from) {
  if constexpr (S == 4) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  } else {
#pragma unroll
    for (int i = 0; i < S; i++) to[i] = from[i];
  }
}

// The states of one thread, and where they lie in memory.
template <class F>
struct Lane {
  int part, c, n0;
  bool active;
  int64_t channel;
  float a[F::S];  // times log2 e
  float b[F::S], c_[F::S];
  __device__ __forceinline__ Lane(const Job& j, const Place& p) {
    part = thread_index() % F::P, c = thread_index() / F::P, n0 = part * F::S;
    active = c < p.count;
    channel = p.channel + (active ? c : 0);
#pragma unroll
    for (int i = 0; i < F::S; i++) {
      const bool there = active && n0 + i < j.states;
      a[i] = there ? j.a[(p.k * j.channels + channel) * j.states + n0 + i] * 1.4426950408889634f : 0.f;
      b[i] = c_[i] = 0.f;
      if (!F::varying && there) {
        if (j.b.constant != nullptr) b[i] = static_cast<const float*>(j.b.constant)[channel * j.states + n0 + i];
        if (j.c.constant != nullptr) c_[i] = static_cast<const float*>(j.c.constant)[channel * j.states + n0 + i];
      }
    }
  }
  __device__ __forceinline__ void read_b(float (&to)[F::S], const Job& j, const Shared<F>& m, int t) const {
    if (F::varying || j.b.constant == nullptr) {
      read<F::S>(to, m.bc + t * F::row + n0);
    } else {
#pragma unroll
      for (int i = 0; i < F::S; i++) to[i] = b[i];
    }
  }
  __device__ __forceinline__ void read_c(float (&to)[F::S], const Job& j, const Shared<F>& m, int t) const {
    if (F::varying || j.c.constant == nullptr) {
      read<F::S>(to, m.bc + t * F::row + F::states + n0);
    } else {
#pragma unroll
      for (int i = 0; i < F::S; i++) to[i] = c_[i];
    }
  }
  // Numbers of (row, N, D).
  __device__ __forceinline__ void load(float (&h)[F::S], const Job& j, const float* from, int64_t row) const {
#pragma unroll
    for (int i = 0; i < F::S; i++) {
      h[i] = active && n0 + i < j.states ? from[(row * j.states + n0 + i) * j.channels + channel] : 0.f;
    }
  }
  __device__ __forceinline__ void save(const float (&h)[F::S], const Job& j, float* to, int64_t row) const {
#pragma unroll
    for (int i = 0; i < F::S; i++) {
      if (active && n0 + i < j.states) to[(row * j.states + n0 + i) * j.channels + channel] = h[i];
    }
  }
  // Numbers of (row, D, N).
  __device__ __forceinline__ void save_channel_first(const float (&h)[F::S], const Job& j, float* to, int64_t row) const {
#pragma unroll
    for (int i = 0; i < F::S; i++) {
      if (active && n0 + i < j.states) to[(row * j.channels + channel) * j.states + n0 + i] = h[i];
    }
  }
};

template <class F>
__device__ __forceinline__ float sum_parts(float x) {
#pragma unroll
  for (int mask = 1; mask < F::P; mask *= 2) x += shuffle_xor(x, mask);
  return x;
}
// Four sums over the four parts of a channel at the price of three exchanges: part i gets the sum of x[i].
__device__ __forceinline__ float sum_four(const float (&x)[4], int part) {
  const bool odd = part & 1, high = part & 2;
  float low = (odd ? x[1] : x[0]) + shuffle_xor(odd ? x[0] : x[1], 1);
  float up = (odd ? x[3] : x[2]) + shuffle_xor(odd ? x[2] : x[3], 1);
  return (high ? up : low) + shuffle_xor(high ? low : up, 2);
}

// Adds the segments up along time, in place: what was each segment's final state becomes the state that it starts from. `reverse`: for adjoints, from
// the last segment to the first, starting from `initial`.
struct CarryJob {
  int64_t slots, segments, states, channels, directions;
  float *carry, *sums;
  const float* a;
  const float* initial;  // (slot, D, N) or null
  bool reverse;
};
__global__ void carry_kernel(CarryJob j) {
  const int64_t i = block_index() * 128 + thread_index();
  if (i >= j.slots * j.states * j.channels) return;
  const int64_t channel = i % j.channels, n = i / j.channels % j.states, slot = i / j.channels / j.states;
  const float a = j.a[((slot % j.directions) * j.channels + channel) * j.states + n] * 1.4426950408889634f;
  float h = j.initial != nullptr ? j.initial[(slot * j.channels + channel) * j.states + n] : 0.f;
  for (int64_t s = 0; s < j.segments; s++) {
    const int64_t row = slot * j.segments + (j.reverse ? j.segments - 1 - s : s);
    float& at = j.carry[(row * j.states + n) * j.channels + channel];
    const float own = at;
    at = h;
    h = fmaf(fast_exp2(a * j.sums[row * j.channels + channel]), h, own);
  }
}

}  // namespace vision_mamba
