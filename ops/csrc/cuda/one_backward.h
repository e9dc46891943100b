// The backward pass of several directions with one state. Tiles are walked from the last to the first; a tile's states are found again from the stored one
// at its start, and its adjoints from what the tile behind it hands over, both through one exchange.
#pragma once
#include "one_common.h"

namespace vision_mamba {

// Sums over a warp's lanes of one piece: lane c % 8 of it gets b[c % 8] and c[c % 8].
template <int channels>
__device__ __forceinline__ float2 sum_piece(float (&b)[8], float (&c)[8], int lane) {
#pragma unroll
  for (int mask = 4; mask > 0; mask /= 2) {
    const bool upper = lane & mask;
#pragma unroll
    for (int i = 0; i < mask; i++) {
      const float give_b = upper ? b[i] : b[i + mask], give_c = upper ? c[i] : c[i + mask];
      b[i] = (upper ? b[i + mask] : b[i]) + shuffle_xor(give_b, mask), c[i] = (upper ? c[i + mask] : c[i]) + shuffle_xor(give_c, mask);
    }
  }
#pragma unroll
  for (int mask = 8; mask < channels; mask *= 2) b[0] += shuffle_xor(b[0], mask), c[0] += shuffle_xor(c[0], mask);
  return {b[0], c[0]};
}

// A block's shares of the gradients of B and C, which many blocks' make: in bfloat16 where the sum will be.
template <class X>
using Share = std::conditional_t<std::is_same_v<X, c10::BFloat16>, c10::BFloat16, float>;
template <class S>
struct alignas(2 * sizeof(S)) Shares {
  S b, c;
};

// `j.grad_u` is of the map's type where sums stand in shared memory, else float32. `j.grad_delta`: (batch, channel, token) of direction 0.
template <class F, class X>
__global__ void __launch_bounds__(kOneThreads, 2) one_backward_kernel(Job j) {
  const OneShared<F> m(j);
  const OneLane<F> lane(j);
  const TokenNumbers<F, X> numbers(j, lane);
  const Column<X> map(j.u, lane), grad_out(j.grad_out, lane);
  const Column<std::conditional_t<F::resident, X, float>> grad_u(j.grad_u, lane);
  const int row = int(one_row(j.rank)), r4 = int(padded_ranks(j.rank));
  float* const tile = m.weights + lane.warp * F::tokens * row;
  const float* const bc = tile + lane.piece * row + r4;
  float4* const summaries = reinterpret_cast<float4*>(m.summaries);
  const int tiles = int((j.length + F::tile - 1) / F::tile);
  const int64_t blocks = (j.channels + F::channels - 1) / F::channels;
  for (int i = lane.lane; i < F::tokens * row; i += 32) tile[i] = 0.f;
  int parity = 0;
  for (int64_t k = 0; k < j.directions; k++) {
    const bool first = k == 0, last = k == j.directions - 1;
    sync_block();
    load_dt_weight(m.dt_weight, j, lane, k);
    sync_block();
    const int64_t of_channel = k * j.channels + lane.channel;
    const float a = j.a[of_channel], a2 = a * kLog2e;
    const float skip = j.d != nullptr ? j.d[of_channel] : 0.f, bias = j.bias != nullptr ? j.bias[of_channel] : 0.f;
    float carry = 0.f, da = 0.f, dd = 0.f, dbias = 0.f;
    Shares<Share<X>>* const shares = reinterpret_cast<Shares<Share<X>>*>(j.partial) + ((k * j.batch + lane.b) * blocks + lane.block) * j.length;
    const Column<X> grad_delta(j.grad_delta, lane, k * j.channels);
    for (int at = tiles; at-- > 0; parity ^= 1) {
      const int start = lane.start(at), left = lane.left(j, start);
      const Token tokens = lane.token(j, k, at);
      float u[kOneSteps], dy[kOneSteps];
      {
        Pair<X> pairs[kAhead];
        numbers.ask(pairs, j, k, tokens);
        read_steps(u, map, lane, tokens);
        read_steps(dy, grad_out, lane, tokens);
        numbers.place(tile, pairs);
      }
      numbers.rest(tile, j, k, tokens);
      sync_warp();
      float step[kOneSteps], decay[kOneSteps];
      project_steps(step, j, lane, tile, m.dt_weight, bias, left);
      float product = 0.f, state = 0.f, adjoint = 0.f;
#pragma unroll
      for (int t = 0; t < kOneSteps; t++) {
        // Steps that there are not must change nothing, whatever numbers stand in their place.
        if (t >= left) u[t] = dy[t] = 0.f;
        decay[t] = fast_exp2(step[t] * a2);
        product += step[t];
        const float b = bc[t * F::pieces * row];
        state = fmaf(decay[t], state, t < left ? step[t] * u[t] * b : 0.f);
      }
      product = fast_exp2(product * a2);
#pragma unroll
      for (int t = kOneSteps - 1; t >= 0; t--) {
        const float c = bc[t * F::pieces * row + 1];
        adjoint = decay[t] * fmaf(t < left ? c : 0.f, dy[t], adjoint);
      }
      // Up to a piece from before it, and from behind it.
      float behind = product;
#pragma unroll
      for (int mask = F::channels; mask < 32; mask *= 2) {
        const int from = lane.lane < mask ? lane.lane : lane.lane - mask, to = lane.lane + mask < 32 ? lane.lane + mask : lane.lane;
        const float p = shuffle_from(product, from), s = shuffle_from(state, from), q = shuffle_from(behind, to), g = shuffle_from(adjoint, to);
        if (lane.lane >= mask) state = fmaf(product, s, state), product *= p;
        if (lane.lane + mask < 32) adjoint = fmaf(behind, g, adjoint), behind *= q;
      }
      float4* const told = summaries + parity * kOneWarps * F::channels + lane.c;
      float before = 1.f, reached = 0.f, after = 1.f, returned = 0.f;
      if constexpr (F::pieces > 1) {
        const int from = lane.piece > 0 ? lane.lane - F::channels : lane.lane, to = lane.piece < F::pieces - 1 ? lane.lane + F::channels : lane.lane;
        before = shuffle_from(product, from), reached = shuffle_from(state, from), after = shuffle_from(behind, to), returned = shuffle_from(adjoint, to);
        if (lane.piece == 0) before = 1.f, reached = 0.f;
        if (lane.piece == F::pieces - 1) after = 1.f, returned = 0.f;
        // The first piece tells what the warp's adjoints come to, the last one its states.
        if (lane.piece == 0) told[lane.warp * F::channels].z = adjoint;
        if (lane.piece == F::pieces - 1) told[lane.warp * F::channels].x = product, told[lane.warp * F::channels].y = state;
      } else {
        told[lane.warp * F::channels] = float4{product, state, adjoint, 0.f};
      }
      float h = j.checkpoints[((lane.b * j.directions + k) * j.chunks + at * (F::tile / kChunk)) * j.channels + lane.channel];
      sync_block();
      float g = carry;
#pragma unroll
      for (int w = 0; w < kOneWarps; w++) {
        const float4 v = told[w * F::channels];
        if (w < lane.warp) h = fmaf(v.x, h, v.y);
      }
#pragma unroll
      for (int w = kOneWarps - 1; w >= 0; w--) {
        const float4 v = told[w * F::channels];
        if (w == lane.warp) g = carry;
        carry = fmaf(v.x, carry, v.z);
      }
      h = fmaf(before, h, reached);
      g = fmaf(after, g, returned);
      float states[kOneSteps + 1];
      states[0] = h;
#pragma unroll
      for (int t = 0; t < kOneSteps; t++) {
        const float b = t < left ? bc[t * F::pieces * row] : 0.f;
        states[t + 1] = fmaf(decay[t], states[t], step[t] * u[t] * b);
      }
      float db[kOneSteps], dc[kOneSteps], du[kOneSteps], dstep[kOneSteps];
#pragma unroll
      for (int t = kOneSteps - 1; t >= 0; t--) {
        const float2 v = t < left ? *reinterpret_cast<const float2*>(bc + t * F::pieces * row) : float2{0.f, 0.f};
        g = fmaf(v.y, dy[t], g);
        db[t] = g * step[t] * u[t];
        dc[t] = states[t + 1] * dy[t];
        const float gx = g * v.x;
        g *= decay[t];
        const float w = g * states[t];
        da = fmaf(w, step[t], da);
        dstep[t] = fmaf(w, a, gx * u[t]);
        du[t] = fmaf(skip, dy[t], gx * step[t]);
        dd = fmaf(dy[t], u[t], dd);
      }
      if (j.softplus) {
#pragma unroll
        for (int t = 0; t < kOneSteps; t++) dstep[t] *= softplus_slope(step[t]);
      }
#pragma unroll
      for (int t = 0; t < kOneSteps; t++) dbias += t < left ? dstep[t] : 0.f;
      const float2 sums = sum_piece<F::channels>(db, dc, lane.lane);
      const int told_step = start + lane.lane % 8;
      if (lane.c < 8 && told_step < j.length) shares[told_step] = {Share<X>(sums.x), Share<X>(sums.y)};
#pragma unroll
      for (int t = 0; t < kOneSteps; t++) {
        const int token = lane.token_of(tokens, t);
        if (t >= left) continue;
        grad_delta[token] = X(dstep[t]);
        if (!F::resident) grad_u[token] = first ? du[t] : float(grad_u[token]) + du[t];
      }
      if constexpr (F::resident) {
#pragma unroll
        for (int t = 0; t < kOneSteps; t++) {
          float& sum = m.sums[lane.place_of(tokens, t)];
          du[t] += first ? 0.f : sum;
          if (t < left) sum = du[t];
        }
        if (last) {
#pragma unroll
          for (int t = 0; t < kOneSteps; t++) {
            const int token = lane.token_of(tokens, t);
            if (t < left) grad_u[token] = X(du[t]);
          }
        }
      }
      sync_warp();
    }
    // What belongs to channels: over the warp's pieces, then over the warps.
#pragma unroll
    for (int mask = F::channels; mask < 32; mask *= 2) da += shuffle_xor(da, mask), dd += shuffle_xor(dd, mask), dbias += shuffle_xor(dbias, mask);
    float4* const told = summaries + parity * kOneWarps * F::channels + lane.c;
    if (lane.piece == 0) told[lane.warp * F::channels] = float4{da, dd, dbias, 0.f};
    parity ^= 1;
    sync_block();
    if (lane.warp == 0 && lane.piece == 0 && lane.active) {
      float4 sum{0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int w = 0; w < kOneWarps; w++) {
        const float4 v = told[w * F::channels];
        sum.x += v.x, sum.y += v.y, sum.z += v.z;
      }
      const int64_t to = lane.b * j.directions * j.channels + of_channel;
      j.grad_a[to] = sum.x, j.grad_d[to] = sum.y, j.grad_bias[to] = sum.z;
    }
  }
}

// Gradients of the tokens' B and C: sums over blocks of channels, in order, to where the token lies.
struct OneMergeJob {
  int64_t batch, directions, blocks, length;
  const void* shares;  // (K, batch, block, step)
  const int32_t* orders;
  Sequence to;  // (batch, number, token) of B of direction 0
  int64_t direction_stride;
};
template <class X>
__global__ void one_merge_kernel(OneMergeJob j) {
  const int64_t i = block_index() * 128 + thread_index();
  if (i >= j.batch * j.directions * j.length) return;
  const int64_t t = i % j.length, b = i / j.length % j.batch, k = i / j.length / j.batch;
  const auto* from = static_cast<const Shares<Share<X>>*>(j.shares) + (k * j.batch + b) * j.blocks * j.length + t;
  float2 sum{0.f, 0.f};
#pragma unroll 4
  for (int64_t block = 0; block < j.blocks; block++) {
    const Shares<Share<X>> v = from[block * j.length];
    sum.x += float(v.b), sum.y += float(v.c);
  }
  int64_t token = j.orders[k * j.length + t];
  token = token < 0 ? 0 : token >= j.length ? j.length - 1 : token;
  const int64_t at = b * j.to.batch_stride + k * j.direction_stride + token * j.to.time_stride;
  X* to = static_cast<X*>(j.to.data) + at;
  to[0] = X(sum.x), to[j.to.row_stride] = X(sum.y);
}

}  // namespace vision_mamba
