// The scans of 2 to 16 states whose B and C vary along time: what their kernels share.
//
// Here a warp owns eight channels, four lanes a channel with four states each, and needs the other warps of its block only for B and C and for the sums
// over channels: its step sizes, inputs and results lie in tiles of its own, [channel][step], and a lane moves the same eight elements of each tile from
// and to memory, so that what is asked for ahead of time comes back to the lane that asked (`stage`, `take`).
#pragma once
#include "scan_common.h"

namespace vision_mamba {

constexpr int kWarpChannels = 8, kMost = 8;  // channels of a warp, elements that a lane moves
constexpr int kPairRow = 34, kRow = 36;      // of tiles of pairs and of numbers: sixteen bytes apart, channels in different banks
constexpr int kMostRanks = 64;
constexpr int kMostTokenBytes = 4 * 128 * 16 / kChunk;  // four slots a thread hold a chunk's tokens

template <bool cross_>
struct WarpForm : Form<4, 4, cross_, true> {
  static constexpr int pairs = 4 * kWarpChannels * kPairRow * 2, tile = 4 * kWarpChannels * kRow;  // floats a block
};

// The eight elements of a tile that a lane moves: neighbours in time of one channel, or all channels at one step.
template <bool time_first>
struct Owner {
  int c, t;
  __device__ __forceinline__ Owner() {
    const int lane = thread_index() % 32;
    c = time_first ? lane / 4 : 0, t = time_first ? lane % 4 * kMost : lane;
  }
  __device__ __forceinline__ int channel(int e) const { return time_first ? c : e; }
  __device__ __forceinline__ int step(int e) const { return time_first ? t + e : t; }
  // Elements before this number are there. It may lie outside of 0 to 8, and is not cut to it: nvcc 13.0 for sm_90 makes "cut to 0 to 8, is it 8?" one
  // instruction, VIMNMX.RELU, whose answer is wrong for numbers below zero.
  __device__ __forceinline__ int there(int channels, int steps) const {
    return time_first ? (c < channels ? steps - t : 0) : (t < steps ? channels : 0);
  }
};

// A lane's eight elements of a sequence, those before `there` real.
struct Eight {
  const Sequence& s;
  int64_t at, next;
  int there;
  template <bool time_first>
  __device__ __forceinline__ Eight(const Sequence& s, const Owner<time_first>& o, int64_t offset, int64_t channel, int64_t time, int there)
      : s(s), at(offset + (channel + o.c) * s.row_stride + time * s.time_stride), next(time_first ? s.time_stride : s.row_stride), there(there) {}
  __device__ __forceinline__ Eight(const Sequence& s, int64_t at, int64_t next, int there) : s(s), at(at), next(next), there(there) {}
  __device__ __forceinline__ int size() const { return s.type == Scalar::f32 ? 4 : 2; }
  __device__ __forceinline__ char* data() const { return static_cast<char*>(s.data) + at * size(); }
  __device__ __forceinline__ bool whole() const { return there >= kMost && next == 1 && reinterpret_cast<uintptr_t>(data()) % 16 == 0; }
};

// Asks for the elements; `take` gets them once `wait_copies` has passed. Elements that do not lie side by side in memory are waited for here. Returns which it was.
__device__ __forceinline__ bool stage(float4* slot, const Eight& x) {
  if (x.whole()) {
    copy_async(slot, x.data());
    if (x.size() == 4) copy_async(slot + 128, x.data() + 16);
    return true;
  }
  float r[kMost];
  with_type(x.s.type, [&](auto tag) {
    const auto* from = static_cast<const decltype(tag)*>(x.s.data) + x.at;
#pragma unroll
    for (int e = 0; e < kMost; e++) r[e] = e < x.there ? float(from[e * x.next]) : 0.f;
  });
  slot[0] = float4{r[0], r[1], r[2], r[3]}, slot[128] = float4{r[4], r[5], r[6], r[7]};
  return false;
}
__device__ __forceinline__ void unpack(float (&r)[kMost], float4 v, Scalar type) {
  const uint32_t words[4] = {bits_of(v.x), bits_of(v.y), bits_of(v.z), bits_of(v.w)};
  if (type == Scalar::bf16) {
#pragma unroll
    for (int i = 0; i < 4; i++) r[2 * i] = float_of(words[i] << 16), r[2 * i + 1] = float_of(words[i] & 0xffff0000u);
  } else {
#pragma unroll
    for (int i = 0; i < kMost; i++) r[i] = float(c10::Half(uint16_t(words[i / 2] >> (16 * (i % 2))), c10::Half::from_bits()));
  }
}
template <class X>
__device__ __forceinline__ float4 pack(const float (&r)[kMost]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; i++) words[i] = X(r[2 * i]).x | uint32_t(X(r[2 * i + 1]).x) << 16;
  return {float_of(words[0]), float_of(words[1]), float_of(words[2]), float_of(words[3])};
}
__device__ __forceinline__ void take(float (&r)[kMost], const float4* slot, Scalar type, bool asked) {
  const float4 low = slot[0];
  if (asked && type != Scalar::f32) return unpack(r, low, type);
  const float4 high = slot[128];
  r[0] = low.x, r[1] = low.y, r[2] = low.z, r[3] = low.w, r[4] = high.x, r[5] = high.y, r[6] = high.z, r[7] = high.w;
}
// The elements at once.
__device__ __forceinline__ void get(float (&r)[kMost], const Eight& x) {
  with_type(x.s.type, [&](auto tag) {
    const auto* from = static_cast<const decltype(tag)*>(x.s.data) + x.at;
#pragma unroll
    for (int e = 0; e < kMost; e++) r[e] = e < x.there ? float(from[e * x.next]) : 0.f;
  });
}
__device__ __forceinline__ void put(const Eight& x, const float (&r)[kMost], bool add) {
  if (x.whole() && x.s.type == Scalar::f32) {
    float4* to = reinterpret_cast<float4*>(x.data());
    float4 low{r[0], r[1], r[2], r[3]}, high{r[4], r[5], r[6], r[7]};
    if (add) {
      const float4 a = to[0], b = to[1];
      low.x += a.x, low.y += a.y, low.z += a.z, low.w += a.w, high.x += b.x, high.y += b.y, high.z += b.z, high.w += b.w;
    }
    to[0] = low, to[1] = high;
  } else if (x.whole() && !add) {
    *reinterpret_cast<float4*>(x.data()) = x.s.type == Scalar::bf16 ? pack<c10::BFloat16>(r) : pack<c10::Half>(r);
  } else {
    with_type(x.s.type, [&](auto tag) {
      using X = decltype(tag);
      X* to = static_cast<X*>(x.s.data) + x.at;
#pragma unroll
      for (int e = 0; e < kMost; e++) {
        if (e < x.there) to[e * x.next] = X(add ? float(to[e * x.next]) + r[e] : r[e]);
      }
    });
  }
}

// B and C of a chunk, [step][B, C][copy][16], so that what the lanes of a warp read of one step lies in different banks. A thread moves eight numbers of one of
// the two. Copy `p` has the four states of a lane in the order i ^ p, for sums that give each lane the one it keeps in the same register (`copies` is four then).
template <int copies>
struct WeightTile {
  static constexpr int row = copies * 32 + 4, floats = kChunk * row, second = copies * 16;
  const Sequence& s;
  int64_t offset;
  bool time_first;
  int half, n, t;
  __device__ __forceinline__ WeightTile(const Job& j, const Place& p) : s(thread_index() < 64 ? j.b.sequence : j.c.sequence) {
    const Weights& w = thread_index() < 64 ? j.b : j.c;
    const int i = thread_index() % 64;
    half = thread_index() / 64, time_first = s.time_stride == 1;
    n = time_first ? i % 16 : i / 32 * 8, t = time_first ? i / 16 * 8 : i % 32;
    offset = p.b * s.batch_stride + p.group / (j.groups / w.groups) * w.group_stride;
  }
  __device__ __forceinline__ bool stage(float4* slot, const Job& j, int64_t t0, int steps) const {
    const int states = int(j.states), left = time_first ? (n < states ? steps - t : 0) : (t < steps ? states - n : 0);
    const int64_t at = offset + n * s.row_stride + (t0 + t) * s.time_stride;
    return vision_mamba::stage(slot, Eight(s, at, time_first ? s.time_stride : s.row_stride, left));
  }
  __device__ __forceinline__ static void put(float* tile, int t, int half, int n, float value) {
#pragma unroll
    for (int p = 0; p < copies; p++) tile[t * row + half * second + p * 16 + (n ^ p)] = value;
  }
  __device__ __forceinline__ void unstage(float* tile, const float4* slot, bool asked) const {
    float r[kMost];
    take(r, slot, s.type, asked);
    float* const to = tile + t * row + half * second;
    if (time_first) {
      // The halves of a warp write different copies at a time: their steps are eight apart, the same banks.
      const int turn = copies > 1 ? thread_index() / 16 & 1 : 0;
#pragma unroll
      for (int p = 0; p < copies; p++) {
        float* const at = to + (p ^ turn) * 16 + (n ^ p ^ turn);
#pragma unroll
        for (int e = 0; e < kMost; e++) at[e * row] = r[e];
      }
    } else {
      // n is a multiple of eight.
#pragma unroll
      for (int p = 0; p < copies; p++) {
#pragma unroll
        for (int e = 0; e < kMost; e++) to[p * 16 + n + (e ^ p)] = r[e];
      }
    }
  }
};

__device__ __forceinline__ int token_at(const Job& j, const Place& p, int64_t t) {
  // Orders lie on the GPU and cannot be checked without waiting for it: at least nothing outside of memory is touched.
  const int64_t token = t < j.length ? j.orders[p.k * j.length + t] : 0;
  return int(token < 0 ? 0 : token >= j.length ? j.length - 1 : token);
}

// Several directions: what a chunk's tokens say. The ranks' numbers [rank][step], B and C as above; each warp reads eight tokens.
template <int copies>
__device__ __forceinline__ void load_tokens(const Job& j, const Place& p, float* ranks, float* tile, int token, int steps) {
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int numbers = int(j.rank + 2 * j.states), states = int(j.states), rank = int(j.rank);
  with_type(j.weights.type, [&](auto tag) {
    const auto* from = static_cast<const decltype(tag)*>(j.weights.data) + p.b * j.weights.batch_stride + p.k * j.weights_direction;
#pragma unroll 1
    for (int e = lane; e - lane < numbers; e += 32) {
      float r[8];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int64_t at = shuffle_from(token, warp * 8 + i) * j.weights.time_stride;
        r[i] = e < numbers && warp * 8 + i < steps ? float(from[at + e]) : 0.f;
      }
      if (e >= numbers) continue;
      const int n = e - rank;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        if (n < 0) {
          ranks[e * 33 + warp * 8 + i] = r[i];
        } else {
          WeightTile<copies>::put(tile, warp * 8 + i, n >= states, n >= states ? n - states : n, r[i]);
        }
      }
    }
  });
}
// The same in two halves, where a token's numbers are whole words of four bytes: asked for ahead of time (`raw` [step][word], each warp eight steps), and put
// where they belong once `wait_copies` and a barrier of the warp have passed.
__device__ __forceinline__ void ask_tokens(const Job& j, const Place& p, uint32_t* raw, int token) {
  const int lane = thread_index() % 32, warp = thread_index() / 32, words = j.token_words, size = j.weights.type == Scalar::f32 ? 4 : 2;
  const char* from = static_cast<const char*>(j.weights.data) + (p.b * j.weights.batch_stride + p.k * j.weights_direction) * size + lane * 4;
  uint32_t* to = raw + warp * 8 * words + lane;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const char* const at = from + shuffle_from(token, warp * 8 + i) * j.weights.time_stride * size;
#pragma unroll 1
    for (int w = 0; w + lane < words; w += 32) copy_word_async(to + i * words + w, at + w * 4);
  }
}
template <int copies>
__device__ __forceinline__ void take_tokens(const Job& j, const uint32_t* raw, float* ranks, float* tile, int steps) {
  const int lane = thread_index() % 32, warp = thread_index() / 32, words = j.token_words;
  const int states = int(j.states), rank = int(j.rank), t = warp * 8;
  auto place_number = [&](int e, const float (&r)[8]) {
    const int n = e - rank;
    if (n < 0) {
#pragma unroll
      for (int i = 0; i < 8; i++) ranks[e * 33 + t + i] = r[i];
    } else {
      const int half = n >= states;
#pragma unroll
      for (int i = 0; i < 8; i++) WeightTile<copies>::put(tile, t + i, half, half ? n - states : n, r[i]);
    }
  };
#pragma unroll 1
  for (int w = lane; w < words; w += 32) {
    uint32_t bits[8];
    float r[8];
#pragma unroll
    for (int i = 0; i < 8; i++) bits[i] = t + i < steps ? raw[(t + i) * words + w] : 0;
    if (j.weights.type == Scalar::f32) {
#pragma unroll
      for (int i = 0; i < 8; i++) r[i] = float_of(bits[i]);
      place_number(w, r);
    } else {
#pragma unroll
      for (int second = 0; second < 2; second++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const uint32_t number = bits[i] >> (16 * second) & 0xffffu;
          r[i] = j.weights.type == Scalar::bf16 ? float_of(number << 16) : float(c10::Half(uint16_t(number), c10::Half::from_bits()));
        }
        place_number(2 * w + second, r);
      }
    }
  }
}
// Numbers of states that there are not stay zero.
template <int copies>
__device__ __forceinline__ void clear_weights(float* tile, int tiles) {
  for (int i = thread_index(); i < tiles * WeightTile<copies>::floats; i += 128) tile[i] = 0.f;
}
// [rank][channel of the block]
__device__ __forceinline__ void load_dt_weight(const Job& j, const Place& p, float* to) {
  for (int i = thread_index(); i < int(j.rank) * 32; i += 128) {
    const int c = i % 32;
    to[i] = c < p.count ? j.dt_weight[(p.k * j.rank + i / 32) * j.channels + p.channel + c] : 0.f;
  }
}
// A lane's step sizes before bias and softplus: its step, the warp's channels.
__device__ __forceinline__ void project(float (&dt)[kMost], const Job& j, const float* ranks, const float* dt_weight) {
  const int lane = thread_index() % 32, warp = thread_index() / 32;
#pragma unroll
  for (int e = 0; e < kMost; e++) dt[e] = 0.f;
#pragma unroll 2
  for (int r = 0; r < int(j.rank); r++) {
    const float x = ranks[r * 33 + lane];
    const float4* w = reinterpret_cast<const float4*>(dt_weight + r * 32 + warp * 8);
    const float4 low = w[0], high = w[1];
    dt[0] = fmaf(x, low.x, dt[0]), dt[1] = fmaf(x, low.y, dt[1]), dt[2] = fmaf(x, low.z, dt[2]), dt[3] = fmaf(x, low.w, dt[3]);
    dt[4] = fmaf(x, high.x, dt[4]), dt[5] = fmaf(x, high.y, dt[5]), dt[6] = fmaf(x, high.z, dt[6]), dt[7] = fmaf(x, high.w, dt[7]);
  }
}
// Bias and D of the block's channels, zero where there are none: read once, for a lane needs up to eight of each in every chunk. The caller passes a barrier.
constexpr int kConstants = 64;
__device__ __forceinline__ void load_constants(const Job& j, const Place& p, float* to) {
  const int c = thread_index();
  if (c >= 32) return;
  const int64_t at = p.k * j.channels + p.channel + c;
  to[c] = j.bias != nullptr && c < p.count ? j.bias[at] : 0.f;
  to[32 + c] = j.d != nullptr && c < p.count ? j.d[at] : 0.f;
}
// A lane's elements of them; `own` points to the warp's eight.
template <bool time_first>
__device__ __forceinline__ void get_constants(float (&r)[kMost], const float* own, const Owner<time_first>& o) {
  if constexpr (time_first) {
    const float x = own[o.c];
#pragma unroll
    for (int e = 0; e < kMost; e++) r[e] = x;
  } else {
    const float4 low = reinterpret_cast<const float4*>(own)[0], high = reinterpret_cast<const float4*>(own)[1];
    r[0] = low.x, r[1] = low.y, r[2] = low.z, r[3] = low.w, r[4] = high.x, r[5] = high.y, r[6] = high.z, r[7] = high.w;
  }
}
// Bias and softplus. Steps and channels that there are not get a step size of zero, which leaves every state as it is.
template <bool time_first>
__device__ __forceinline__ void finish_steps(float (&dt)[kMost], const Job& j, const float* own_bias, const Owner<time_first>& o, int there) {
  float bias[kMost];
  get_constants(bias, own_bias, o);
#pragma unroll
  for (int e = 0; e < kMost; e++) dt[e] += bias[e];
  if (j.softplus) {
#pragma unroll
    for (int e = 0; e < kMost; e++) dt[e] = softplus(dt[e]);
  }
#pragma unroll
  for (int e = 0; e < kMost; e++) dt[e] = e < there ? dt[e] : 0.f;
}
template <bool time_first>
__device__ __forceinline__ void put_pairs(float2* tile, const Owner<time_first>& o, const float (&a)[kMost], const float (&b)[kMost]) {
  if constexpr (time_first) {
    float4* to = reinterpret_cast<float4*>(tile + o.c * kPairRow + o.t);
#pragma unroll
    for (int e = 0; e < kMost; e += 2) to[e / 2] = float4{a[e], b[e], a[e + 1], b[e + 1]};
  } else {
#pragma unroll
    for (int e = 0; e < kMost; e++) tile[e * kPairRow + o.t] = float2{a[e], b[e]};
  }
}
template <bool time_first>
__device__ __forceinline__ void get_pairs(float (&a)[kMost], float (&b)[kMost], const float2* tile, const Owner<time_first>& o) {
  if constexpr (time_first) {
    const float4* from = reinterpret_cast<const float4*>(tile + o.c * kPairRow + o.t);
#pragma unroll
    for (int e = 0; e < kMost; e += 2) {
      const float4 v = from[e / 2];
      a[e] = v.x, b[e] = v.y, a[e + 1] = v.z, b[e + 1] = v.w;
    }
  } else {
#pragma unroll
    for (int e = 0; e < kMost; e++) {
      const float2 v = tile[e * kPairRow + o.t];
      a[e] = v.x, b[e] = v.y;
    }
  }
}
template <bool time_first>
__device__ __forceinline__ void put_row(float* tile, const Owner<time_first>& o, const float (&a)[kMost]) {
  if constexpr (time_first) {
    float4* to = reinterpret_cast<float4*>(tile + o.c * kRow + o.t);
    to[0] = float4{a[0], a[1], a[2], a[3]}, to[1] = float4{a[4], a[5], a[6], a[7]};
  } else {
#pragma unroll
    for (int e = 0; e < kMost; e++) tile[e * kRow + o.t] = a[e];
  }
}
template <bool time_first>
__device__ __forceinline__ void get_row(float (&a)[kMost], const float* tile, const Owner<time_first>& o) {
  if constexpr (time_first) {
    const float4* from = reinterpret_cast<const float4*>(tile + o.c * kRow + o.t);
    const float4 low = from[0], high = from[1];
    a[0] = low.x, a[1] = low.y, a[2] = low.z, a[3] = low.w, a[4] = high.x, a[5] = high.y, a[6] = high.z, a[7] = high.w;
  } else {
#pragma unroll
    for (int e = 0; e < kMost; e++) a[e] = tile[e * kRow + o.t];
  }
}

// The states of a lane, in the order i ^ `order`.
struct WarpLane {
  int part, c, order;
  bool active;
  int64_t channel;
  float a[4];  // times log2 e
  __device__ __forceinline__ WarpLane(const Job& j, const Place& p, bool ordered) {
    const int lane = thread_index() % 32, warp = thread_index() / 32;
    part = lane % 4, c = lane / 4, order = ordered ? c / 4 * 2 + c / 2 % 2 : 0;
    active = warp * kWarpChannels + c < p.count;
    channel = p.channel + (active ? warp * kWarpChannels + c : 0);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      a[i] = active && state(i) < j.states ? j.a[(p.k * j.channels + channel) * j.states + state(i)] * kLog2e : 0.f;
    }
  }
  __device__ __forceinline__ int state(int i) const { return part * 4 + (i ^ order); }
  // Numbers of (row, N, D).
  __device__ __forceinline__ void load(float (&h)[4], const Job& j, const float* from, int64_t row) const {
#pragma unroll
    for (int i = 0; i < 4; i++) h[i] = active && state(i) < j.states ? from[(row * j.states + state(i)) * j.channels + channel] : 0.f;
  }
  __device__ __forceinline__ void save(const float (&h)[4], const Job& j, float* to, int64_t row) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (active && state(i) < j.states) to[(row * j.states + state(i)) * j.channels + channel] = h[i];
    }
  }
  // Numbers of (row, D, N).
  __device__ __forceinline__ void save_channel_first(const float (&h)[4], const Job& j, float* to, int64_t row) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (active && state(i) < j.states) to[(row * j.channels + channel) * j.states + state(i)] = h[i];
    }
  }
};

}  // namespace vision_mamba
