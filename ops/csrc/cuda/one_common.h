// Several directions with one state: what the kernels share.
//
// A block takes up to 32 neighbouring channels of one image through all directions, one after another, so that a map is read and written once: sums
// over directions stand in shared memory, or for large maps in float32 in memory. A lane walks eight steps of one channel in registers; 32 / channels
// pieces of eight steps lie side by side in a warp, the warps' pieces behind each other, and what reaches a piece from those before it (a decay and a
// state) is composed through one exchange a tile. No exponential is taken twice.
#pragma once
#include "scan_common.h"

namespace vision_mamba {

constexpr int kOneWarps = 8, kOneSteps = 8, kOneThreads = 32 * kOneWarps;
constexpr int kAhead = 8;  // pairs of the tokens' numbers that a lane asks for ahead of time

template <int channels_, bool resident_>
struct OneForm {
  static constexpr int channels = channels_, pieces = 32 / channels;
  static constexpr int tokens = pieces * kOneSteps, tile = kOneWarps * tokens;  // of a warp and of a block
  static constexpr bool resident = resident_;
  // Tokens that lie a piece apart, along rows or columns, fall into different banks.
  __device__ __forceinline__ static int slot(int token) { return token ^ (((token >> 3) + (token >> 6)) & (pieces - 1)); }
};

__host__ __device__ constexpr int64_t padded_ranks(int64_t rank) { return (rank + 3) / 4 * 4; }
// The numbers of a token: ranks, B, C. An odd number of sixteen bytes, so that pieces are in different banks.
__host__ __device__ constexpr int64_t one_row(int64_t rank) { return padded_ranks(rank) + ((padded_ranks(rank) / 4 + 1) % 2 == 0 ? 8 : 4); }

// Shared memory of a block, in floats. `summary`: numbers that a warp tells the others of each channel.
template <class F>
struct OneShared {
  float *sums, *weights, *dt_weight, *summaries;
  __host__ __device__ static constexpr int64_t sums_size(int64_t length) { return F::resident ? (length + 3) / 4 * 4 * F::channels : 0; }
  __host__ __device__ static constexpr int64_t weights_size(int64_t rank) { return F::tokens * one_row(rank); }
  static constexpr size_t bytes(int64_t length, int64_t rank, int summary) {
    return sizeof(float) * size_t(sums_size(length) + kOneWarps * weights_size(rank) + padded_ranks(rank) * F::channels + 2 * kOneWarps * F::channels * summary);
  }
  __device__ __forceinline__ explicit OneShared(const Job& j) {
    sums = reinterpret_cast<float*>(shared_memory());
    weights = sums + sums_size(j.length);
    dt_weight = weights + kOneWarps * weights_size(j.rank);
    summaries = dt_weight + padded_ranks(j.rank) * F::channels;
  }
};

// A lane's place.
template <class F>
struct OneLane {
  int lane, warp, c, piece;
  int64_t b, block, channel;
  bool active;
  __device__ __forceinline__ explicit OneLane(const Job& j) {
    lane = thread_index() % 32, warp = thread_index() / 32, c = lane % F::channels, piece = lane / F::channels;
    const int64_t blocks = (j.channels + F::channels - 1) / F::channels;
    b = block_index() / blocks, block = block_index() % blocks;
    active = block * F::channels + c < j.channels;
    channel = block * F::channels + (active ? c : 0);
  }
  // The first of the lane's steps in a tile.
  __device__ __forceinline__ int64_t start(int64_t tile) const { return tile * F::tile + (warp * F::pieces + piece) * kOneSteps; }
  // Each lane holds one of the warp's tokens: number t * pieces + piece.
  __device__ __forceinline__ int token(const Job& j, int64_t k, int64_t tile) const {
    const int i = lane % F::tokens;
    const int64_t time = tile * F::tile + (warp * F::pieces + i % F::pieces) * kOneSteps + i / F::pieces;
    // Orders lie on the GPU and cannot be checked without waiting for it: at least nothing outside of memory is touched.
    const int64_t token = time < j.length ? j.orders[k * j.length + time] : 0;
    return int(token < 0 ? 0 : token >= j.length ? j.length - 1 : token);
  }
  __device__ __forceinline__ int token_of(int tokens, int t) const { return shuffle_from(tokens, t * F::pieces + piece); }
  __device__ __forceinline__ void read(float (&to)[kOneSteps], const Sequence& s, int tokens) const {
    with_type(s.type, [&](auto tag) {
      const auto* from = static_cast<const decltype(tag)*>(s.data) + b * s.batch_stride + channel * s.row_stride;
#pragma unroll
      for (int t = 0; t < kOneSteps; t++) to[t] = float(from[token_of(tokens, t) * s.time_stride]);
    });
  }
};

// The tokens' numbers, pair by pair, from memory into the warp's tile [token][row]. A token's pairs lie in neighbouring lanes.
template <class F>
struct TokenNumbers {
  const Job& j;
  const OneLane<F>& lane;
  int numbers, width, per, goes, n;
  bool paired;
  __device__ __forceinline__ TokenNumbers(const Job& j, const OneLane<F>& lane) : j(j), lane(lane) {
    numbers = int(j.rank) + 2;
    width = 1;
    while (width < 32 && 2 * width < numbers) width *= 2;
    per = 32 / width, goes = F::tokens / per, n = lane.lane % width * 2;
    const Sequence& w = j.weights;
    paired = numbers % 2 == 0 && w.type != Scalar::f32 && w.time_stride % 2 == 0 && w.batch_stride % 2 == 0 && j.weights_direction % 2 == 0 &&
             reinterpret_cast<uintptr_t>(w.data) % 4 == 0;
    if (goes < 1) goes = 1;
  }
  // Numbers behind the first 64 are left to a further round.
  __device__ __forceinline__ int slot(int go) const { return go * per + lane.lane / width; }
  __device__ __forceinline__ bool there(int go, int first) const { return go < goes && slot(go) < F::tokens && first + n < numbers; }
  __device__ __forceinline__ void ask(uint32_t (&low)[kAhead], uint32_t (&high)[kAhead], int64_t k, int tokens, int go0, int first) const {
    const Sequence& w = j.weights;
    const int64_t base = lane.b * w.batch_stride + k * j.weights_direction + first + n;
#pragma unroll
    for (int q = 0; q < kAhead; q++) {
      if (go0 + q >= goes) break;
      const int64_t at = base + shuffle_from(tokens, slot(go0 + q) % F::tokens) * w.time_stride;
      low[q] = high[q] = 0;
      if (!there(go0 + q, first)) continue;
      if (paired) {
        low[q] = *reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(w.data) + at);
      } else if (w.type == Scalar::f32) {
        const float* from = static_cast<const float*>(w.data) + at;
        low[q] = bits_of(from[0]);
        if (first + n + 1 < numbers) high[q] = bits_of(from[1]);
      } else {
        const uint16_t* from = static_cast<const uint16_t*>(w.data) + at;
        low[q] = from[0];
        if (first + n + 1 < numbers) low[q] |= uint32_t(from[1]) << 16;
      }
    }
  }
  __device__ __forceinline__ void place(float* tile, const uint32_t (&low)[kAhead], const uint32_t (&high)[kAhead], int go0, int first) const {
    const int row = int(one_row(j.rank)), rank = int(j.rank), r4 = int(padded_ranks(j.rank)), i = first + n;
    const int to = i < rank ? i : r4 + i - rank, next = i + 1 < rank ? i + 1 : r4 + i + 1 - rank;
#pragma unroll
    for (int q = 0; q < kAhead; q++) {
      if (go0 + q >= goes) break;
      if (!there(go0 + q, first)) continue;
      float x, y;
      if (j.weights.type == Scalar::f32) {
        x = float_of(low[q]), y = float_of(high[q]);
      } else if (j.weights.type == Scalar::bf16) {
        x = float_of(low[q] << 16), y = float_of(low[q] & 0xffff0000u);
      } else {
        x = float(c10::Half(uint16_t(low[q]), c10::Half::from_bits())), y = float(c10::Half(uint16_t(low[q] >> 16), c10::Half::from_bits()));
      }
      float* at = tile + slot(go0 + q) * row;
      at[to] = x;
      if (i + 1 < numbers) at[next] = y;
    }
  }
  // What does not fit into the registers of `ask`.
  __device__ __forceinline__ void rest(float* tile, int64_t k, int tokens) const {
    uint32_t low[kAhead], high[kAhead];
    for (int first = 0; first < numbers; first += 64) {
      for (int go = first == 0 ? kAhead : 0; go < goes; go += kAhead) ask(low, high, k, tokens, go, first), place(tile, low, high, go, first);
    }
  }
};

// Step sizes of a lane's eight steps before bias and softplus.
template <class F>
__device__ __forceinline__ void project_steps(float (&dt)[kOneSteps], const Job& j, const OneLane<F>& lane, const float* tile, const float* dt_weight) {
  const int row = int(one_row(j.rank)), r4 = int(padded_ranks(j.rank));
  const float* const mine = tile + lane.piece * row;
#pragma unroll
  for (int t = 0; t < kOneSteps; t++) dt[t] = 0.f;
#pragma unroll 1
  for (int r = 0; r < r4; r += 4) {
    float w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) w[i] = dt_weight[(r + i) * F::channels + lane.c];
#pragma unroll
    for (int t = 0; t < kOneSteps; t++) {
      const float4 x = *reinterpret_cast<const float4*>(mine + t * F::pieces * row + r);
      dt[t] = fmaf(x.x, w[0], fmaf(x.y, w[1], fmaf(x.z, w[2], fmaf(x.w, w[3], dt[t]))));
    }
  }
}
// [rank][channel] of a direction, zero where there is nothing. The whole block.
template <class F>
__device__ __forceinline__ void load_dt_weight(float* to, const Job& j, const OneLane<F>& lane, int64_t k) {
  for (int i = thread_index(); i < int(padded_ranks(j.rank)) * F::channels; i += kOneThreads) {
    const int r = i / F::channels;
    const int64_t channel = lane.block * F::channels + i % F::channels;
    to[i] = r < j.rank && channel < j.channels ? j.dt_weight[(k * j.rank + r) * j.channels + channel] : 0.f;
  }
}
__device__ __forceinline__ float shuffle_from(float value, int lane) { return float_of(uint32_t(shuffle_from(int(bits_of(value)), lane))); }

}  // namespace vision_mamba
