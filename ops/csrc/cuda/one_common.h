// Several directions with one state: what the kernels share.
//
// A block takes up to 32 neighbouring channels of one image through all directions, one after another, so that a map is read and written once: sums
// over directions stand in shared memory, or for large maps in float32 in memory. A lane walks eight steps of one channel in registers; 32 / channels
// pieces of eight steps lie side by side in a warp, the warps' pieces behind each other, and what reaches a piece from those before it (a decay and a
// state) is composed through one exchange a tile. No exponential is taken twice.
#pragma once
#include <type_traits>

#include "scan_common.h"

namespace vision_mamba {

constexpr int kOneWarps = 8, kOneSteps = 8, kOneThreads = 32 * kOneWarps;
constexpr int kAhead = 8;  // pairs of the tokens' numbers that a lane asks for ahead of time
constexpr int kOneMostRanks = 62;  // a warp's lanes read a token's numbers at once

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

// A token of the map, and where its sums stand.
struct Token {
  int index, place;
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
  __device__ __forceinline__ int start(int tile) const { return tile * F::tile + (warp * F::pieces + piece) * kOneSteps; }
  // How many of them there are.
  __device__ __forceinline__ int left(const Job& j, int start) const {
    const int left = int(j.length) - start;
    return !active ? 0 : left < kOneSteps ? left : kOneSteps;
  }
  // Each lane holds one of the warp's tokens: number t * pieces + piece.
  __device__ __forceinline__ Token token(const Job& j, int64_t k, int tile) const {
    const int i = lane % F::tokens, length = int(j.length);
    const int time = tile * F::tile + (warp * F::pieces + i % F::pieces) * kOneSteps + i / F::pieces;
    // Orders lie on the GPU and cannot be checked without waiting for it: at least nothing outside of memory is touched.
    int token = time < length ? j.orders[k * length + time] : 0;
    token = token < 0 ? 0 : token >= length ? length - 1 : token;
    return {token, F::slot(token) * F::channels};
  }
  __device__ __forceinline__ int token_of(Token tokens, int t) const { return shuffle_from(tokens.index, t * F::pieces + piece); }
  __device__ __forceinline__ int place_of(Token tokens, int t) const { return shuffle_from(tokens.place, t * F::pieces + piece) + c; }
};

// The lane's channel of the block's image. Tokens lie less than 2^31 bytes apart.
template <class X>
struct Column {
  char* data;
  uint32_t stride;
  template <class F>
  __device__ __forceinline__ Column(const Sequence& s, const OneLane<F>& lane, int64_t offset = 0)
      : data(static_cast<char*>(s.data) + (lane.b * s.batch_stride + offset + lane.channel) * int64_t(sizeof(X))), stride(uint32_t(s.time_stride) * uint32_t(sizeof(X))) {}
  __device__ __forceinline__ X& operator[](int token) const { return *reinterpret_cast<X*>(data + uint64_t(uint32_t(token)) * stride); }
};
template <class F, class X>
__device__ __forceinline__ void read_steps(float (&to)[kOneSteps], const Column<X>& from, const OneLane<F>& lane, Token tokens) {
#pragma unroll
  for (int t = 0; t < kOneSteps; t++) to[t] = float(from[lane.token_of(tokens, t)]);
}

// Two neighbours in memory.
template <class X>
struct Pair {
  uint32_t bits;
  __device__ __forceinline__ float2 value() const {
    if constexpr (std::is_same_v<X, c10::BFloat16>) return {float_of(bits << 16), float_of(bits & 0xffff0000u)};
    return {float(c10::Half(uint16_t(bits), c10::Half::from_bits())), float(c10::Half(uint16_t(bits >> 16), c10::Half::from_bits()))};
  }
};
template <>
struct Pair<float> {
  float2 both;
  __device__ __forceinline__ float2 value() const { return both; }
};

// The tokens' numbers, an even count of them, pair by pair from memory into the warp's tile [token][row]. A token's pairs lie in neighbouring lanes, of
// which some read and write what is wanted nowhere.
template <class F, class X>
struct TokenNumbers {
  const char* data;  // of direction 0, the lane's pair
  uint32_t stride;
  int goes, slots, slot, to, place_stride;
  __device__ __forceinline__ TokenNumbers(const Job& j, const OneLane<F>& lane) {
    const Sequence& w = j.weights;
    const int rank = int(j.rank), numbers = rank + 2, r4 = int(padded_ranks(rank)), row = int(one_row(rank));
    int width = 1;
    while (width < 32 && 2 * width < numbers) width *= 2;
    const int n = lane.lane % width * 2;
    slots = 32 / width, slot = lane.lane / width & (F::tokens - 1);
    goes = F::tokens / slots > 0 ? F::tokens / slots : 1;
    data = static_cast<const char*>(w.data) + (lane.b * w.batch_stride + (n < numbers ? n : 0)) * int64_t(sizeof(X));
    stride = uint32_t(w.time_stride) * uint32_t(sizeof(X));
    to = slot * row + (n < rank ? n : n < numbers ? r4 + n - rank : r4 + 2), place_stride = slots * row;
  }
  // Calls `body(count)` with how many of the goes from `first` are carried out together, known when compiled.
  template <class Body>
  __device__ __forceinline__ void together(int first, const Body& body) const {
    const int left = goes - first;
    if (left >= 8) {
      body(std::integral_constant<int, 8>());
    } else if (left == 4) {
      body(std::integral_constant<int, 4>());
    } else if (left == 2) {
      body(std::integral_constant<int, 2>());
    } else {
      body(std::integral_constant<int, 1>());
    }
  }
  __device__ __forceinline__ void ask(Pair<X> (&pairs)[kAhead], const Job& j, int64_t k, Token tokens, int first = 0) const {
    const char* const from = data + k * j.weights_direction * int64_t(sizeof(X));
    together(first, [&](auto count) {
#pragma unroll
      for (int q = 0; q < decltype(count)::value; q++) {
        const int token = shuffle_from(tokens.index, slot + (first + q) * slots & (F::tokens - 1));
        pairs[q] = *reinterpret_cast<const Pair<X>*>(from + uint64_t(uint32_t(token)) * stride);
      }
    });
  }
  __device__ __forceinline__ void place(float* tile, const Pair<X> (&pairs)[kAhead], int first = 0) const {
    float* const at = tile + to + first * place_stride;
    together(first, [&](auto count) {
#pragma unroll
      for (int q = 0; q < decltype(count)::value; q++) *reinterpret_cast<float2*>(at + q * place_stride) = pairs[q].value();
    });
  }
  // What does not fit into the registers of `ask`.
  __device__ __forceinline__ void rest(float* tile, const Job& j, int64_t k, Token tokens) const {
    Pair<X> pairs[kAhead];
#pragma unroll 1
    for (int go = kAhead; go < goes; go += kAhead) ask(pairs, j, k, tokens, go), place(tile, pairs, go);
  }
};

// Step sizes of a lane's eight steps, zero where there is none.
template <class F>
__device__ __forceinline__ void project_steps(float (&dt)[kOneSteps], const Job& j, const OneLane<F>& lane, const float* tile, const float* dt_weight, float bias,
                                              int left) {
  const int row = int(one_row(j.rank)), r4 = int(padded_ranks(j.rank));
  const float* const mine = tile + lane.piece * row;
#pragma unroll
  for (int t = 0; t < kOneSteps; t++) dt[t] = bias;
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
  if (j.softplus) {
#pragma unroll
    for (int t = 0; t < kOneSteps; t++) dt[t] = softplus(dt[t]);
  }
#pragma unroll
  for (int t = 0; t < kOneSteps; t++) dt[t] = t < left ? dt[t] : 0.f;
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
