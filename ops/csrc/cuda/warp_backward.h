// The backward pass of the scans of 2 to 16 states; scan_backward.h says what it computes.
#pragma once
#include "scan_backward.h"
#include "warp_common.h"

namespace vision_mamba {

template <bool cross>
constexpr size_t warp_backward_bytes(int64_t rank) {
  // Slots of sixteen bytes: input, the output's gradient, step size, B or C (tokens' numbers in place of these), two each; pairs in and out; gradients; B and C; sums.
  return sizeof(float) * size_t(8 * 4 * 128 + 2 * WarpForm<cross>::pairs + WarpForm<cross>::tile + WeightTile<4>::floats + 4 * kChunk * 32 +
                                kConstants + (cross ? rank * (33 + 32) : 0));
}

// Sums the shares that a warp's channels have in the gradients of four states' B and C: seven exchanges, of which six need no choosing, because each
// lane keeps its states in the order that puts what it keeps first. A lane gets one sum, of its part's state `order`: B's if its channel is even, else C's.
__device__ __forceinline__ float sum_weights(float (&b)[4], float (&c)[4], bool odd) {
#pragma unroll
  for (int i = 0; i < 2; i++) b[i] += shuffle_xor(b[i + 2], 16), c[i] += shuffle_xor(c[i + 2], 16);
  b[0] += shuffle_xor(b[1], 8), c[0] += shuffle_xor(c[1], 8);
  return (odd ? c[0] : b[0]) + shuffle_xor(odd ? b[0] : c[0], 4);
}

// At a place of four numbers.
__device__ __forceinline__ void store_four(float* to, const float (&r)[4]) { *reinterpret_cast<float4*>(to) = float4{r[0], r[1], r[2], r[3]}; }
template <class X>
__device__ __forceinline__ void store_four(X* to, const float (&r)[4]) {
  *reinterpret_cast<float2*>(to) = float2{float_of(X(r[0]).x | uint32_t(X(r[1]).x) << 16), float_of(X(r[2]).x | uint32_t(X(r[3]).x) << 16)};
}

// `gradients`: the last pass; else the one that only finds the adjoint which leaves each segment at its start when none comes in at its end.
template <bool cross, bool time_first, bool gate, bool gradients>
__global__ void __launch_bounds__(128, 3) warp_backward_kernel(Job j) {
  using F = WarpForm<cross>;
  using W = WeightTile<4>;
  constexpr int subs = kChunk / kSub;
  float4* slots = reinterpret_cast<float4*>(shared_memory());
  float* const pairs = reinterpret_cast<float*>(slots + 8 * 128);
  float* const results = pairs + F::pairs;
  float* const rows = results + F::pairs;
  float* const weights = rows + F::tile;
  float* const sums = weights + W::floats;  // [warp][step][B, then C]
  float* const constants = sums + 4 * kChunk * 32;
  float* const dt_weight = constants + kConstants;
  float* const ranks = dt_weight + (cross ? j.rank * 32 : 0);
  uint32_t* const raw = reinterpret_cast<uint32_t*>(slots + 4 * 128);
  slots += thread_index();
  const int warp = thread_index() / 32;
  float2* const mine = reinterpret_cast<float2*>(pairs) + warp * kWarpChannels * kPairRow;
  float2* const result = reinterpret_cast<float2*>(results) + warp * kWarpChannels * kPairRow;
  float* const dys = rows + warp * kWarpChannels * kRow;

  const Place p = place<F>(j);
  const Owner<time_first> o;
  const WarpLane lane(j, p, true);
  const W w(j, p);
  const int64_t channel = p.channel + warp * kWarpChannels;
  const int channels = p.count - warp * kWarpChannels;  // may be below zero
  bool u_asked = false, delta_asked = false, dy_asked = false, w_asked = false;
  auto steps_of = [&](int64_t chunk) { return int(j.length - chunk * kChunk < kChunk ? j.length - chunk * kChunk : kChunk); };
  auto ask = [&](int64_t chunk, int token) {
    const int64_t t0 = chunk * kChunk, time = cross ? token : t0 + o.t;
    const int steps = steps_of(chunk), there = o.there(channels, steps);
    if (gradients) u_asked = stage(slots, Eight(j.u, o, p.b * j.u.batch_stride + p.k * j.u_direction, channel, time, there));
    if (j.grad_out.data != nullptr) dy_asked = stage(slots + 2 * 128, Eight(j.grad_out, o, p.b * j.grad_out.batch_stride, channel, time, there));
    if constexpr (cross) {
      if (j.token_words > 0) ask_tokens(j, p, raw, token);
    } else {
      delta_asked = stage(slots + 4 * 128, Eight(j.delta, o, p.b * j.delta.batch_stride, channel, time, there));
      w_asked = w.stage(slots + 6 * 128, j, t0, steps);
    }
  };

  float g[4], da[4], dd[kMost], dbias[kMost], total = 0.f;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const bool given = gradients && j.segments == 1 && j.grad_last_state != nullptr && lane.active && lane.state(i) < j.states;
    g[i] = given ? j.grad_last_state[(p.slot * j.channels + lane.channel) * j.states + lane.state(i)] : 0.f;
    da[i] = 0.f;
  }
#pragma unroll
  for (int e = 0; e < kMost; e++) dd[e] = dbias[e] = 0.f;
  if (gradients && j.segments > 1) lane.load(g, j, j.carry, p.slot * j.segments + p.segment);
  int token = 0, next_token = 0;
  const float* const own_bias = constants + warp * kWarpChannels;
  load_constants(j, p, constants);
  if constexpr (cross) {
    clear_weights<4>(weights, 1);
    load_dt_weight(j, p, dt_weight);
    token = token_at(j, p, (p.last_chunk - 1) * kChunk + o.t);
  }
  sync_block();
  ask(p.last_chunk - 1, token);
  for (int64_t chunk = p.last_chunk; chunk-- > p.first_chunk;) {
    const int64_t t0 = chunk * kChunk;
    const int steps = steps_of(chunk), there = o.there(channels, steps);
    if (cross && chunk > p.first_chunk) next_token = token_at(j, p, t0 - kChunk + o.t);
    float u[kMost], h[4];
    if (gradients) lane.load(h, j, j.checkpoints, p.slot * j.chunks + chunk);
    {
      float dt[kMost], x[kMost], dy[kMost];
      wait_copies();
      if (gradients) take(u, slots, j.u.type, u_asked);
      if (j.grad_out.data != nullptr) {
        take(dy, slots + 2 * 128, j.grad_out.type, dy_asked);
      } else {
#pragma unroll
        for (int e = 0; e < kMost; e++) dy[e] = 0.f;
      }
      if constexpr (gate) {
        float z[kMost];
        get(z, Eight(j.z, o, p.b * j.z.batch_stride, channel, t0 + o.t, there));
#pragma unroll
        for (int e = 0; e < kMost; e++) dy[e] *= z[e] * sigmoid(z[e]);
      }
      put_row(dys, o, dy);
      if constexpr (cross) {
        if (j.token_words > 0) {
          sync_warp();
          take_tokens<4>(j, raw, ranks, weights, steps);
        } else {
          load_tokens<4>(j, p, ranks, weights, token, steps);
        }
        sync_block();
        project(dt, j, ranks, dt_weight);
      } else {
        take(dt, slots + 4 * 128, j.delta.type, delta_asked);
        w.unstage(weights, slots + 6 * 128, w_asked);
      }
      finish_steps(dt, j, own_bias, o, there);
#pragma unroll
      for (int e = 0; e < kMost; e++) x[e] = gradients ? dt[e] * u[e] : 0.f;
      put_pairs(mine, o, dt, x);
    }
    if constexpr (cross) {
      sync_warp();
    } else {
      sync_block();
    }
    if (chunk > p.first_chunk) ask(chunk - 1, next_token);
    const float* const bs = weights + lane.order * 16 + lane.part * 4;
    const float* const cs = bs + W::second;
    const float2* const own = mine + lane.c * kPairRow;
    const float* const own_dys = dys + lane.c * kRow;
    float* const own_sums = sums + warp * kChunk * 32 + (lane.c % 2) * 16 + lane.part * 4 + lane.order;
    if constexpr (!gradients) {
#pragma unroll 2
      for (int t = kChunk - 4; t >= 0; t -= 4) {
        const float4 late = *reinterpret_cast<const float4*>(own + t + 2), early = *reinterpret_cast<const float4*>(own + t);
        const float4 dy4 = *reinterpret_cast<const float4*>(own_dys + t);
#pragma unroll
        for (int k = 3; k >= 0; k--) {
          const float step = k == 3 ? late.z : k == 2 ? late.x : k == 1 ? early.z : early.x;
          const float dy = k == 3 ? dy4.w : k == 2 ? dy4.z : k == 1 ? dy4.y : dy4.x;
          float c[4];
          read(c, cs + (t + k) * W::row);
          total += step;
#pragma unroll
          for (int i = 0; i < 4; i++) g[i] = decay_of<F>(i, step * lane.a[i]) * fmaf(c[i], dy, g[i]);
        }
      }
      sync_block();
      token = next_token;
      continue;
    }
    // The states at the starts of the chunk's parts and, for the gate's gradient, the outputs before it. The states wait where the part's sums will stand.
    // These loops are not unrolled: a chunk's instructions would leave the instruction cache.
    float* const borders = sums + warp * kChunk * 32 + thread_index() % 32 * 4;
#pragma unroll 1
    for (int sub = 0; sub < subs; sub++) {
      *reinterpret_cast<float4*>(borders + sub * kSub * 32) = float4{h[0], h[1], h[2], h[3]};
      if (sub == subs - 1 && !gate) break;
#pragma unroll
      for (int q = 0; q < kSub; q += 2) {
        const float4 v = *reinterpret_cast<const float4*>(own + sub * kSub + q);
#pragma unroll
        for (int k = 0; k < 2; k++) {
          const int t = sub * kSub + q + k;
          const float step = k == 0 ? v.x : v.z, in = k == 0 ? v.y : v.w;
          float b[4];
          read(b, bs + t * W::row);
#pragma unroll
          for (int i = 0; i < 4; i++) h[i] = fmaf(decay_of<F>(i, step * lane.a[i]), h[i], in * b[i]);
          if constexpr (gate) {
            float c[4], y = 0.f;
            read(c, cs + t * W::row);
#pragma unroll
            for (int i = 0; i < 4; i++) y = fmaf(h[i], c[i], y);
            y = sum_parts<F>(y);
            if (lane.part == 0) result[lane.c * kPairRow + t].x = y;
          }
        }
      }
    }
    if constexpr (gate) {
      sync_warp();
      float y[kMost], unused[kMost], z[kMost], dy[kMost];
      get_pairs(y, unused, result, o);
      get(z, Eight(j.z, o, p.b * j.z.batch_stride, channel, t0 + o.t, there));
#pragma unroll
      for (int e = 0; e < kMost; e++) dy[e] = 0.f;
      if (j.grad_out.data != nullptr) get(dy, Eight(j.grad_out, o, p.b * j.grad_out.batch_stride, channel, t0 + o.t, there));
      float d[kMost];
      get_constants(d, own_bias + 32, o);
#pragma unroll
      for (int e = 0; e < kMost; e++) {
        const float s = sigmoid(z[e]);
        dy[e] *= fmaf(d[e], u[e], y[e]) * s * (1.f + z[e] * (1.f - s));
      }
      put(Eight(j.grad_z, o, p.b * j.grad_z.batch_stride, channel, t0 + o.t, there), dy, false);
      sync_warp();
    }
    // A step's sums are stored when the next four steps' numbers have been asked for: the compiler cannot tell that a store and a later load touch different
    // places, and would have each step wait for the exchanges of the one before.
    float kept[4] = {0.f, 0.f, 0.f, 0.f};
    float2 kept_result{0.f, 0.f};
    auto store = [&](int t) {
#pragma unroll
      for (int k = 0; k < 4; k++) own_sums[(t + k) * 32] = kept[k];
      result[lane.c * kPairRow + t + lane.part] = kept_result;
    };
#pragma unroll 1
    for (int sub = subs - 1; sub >= 0; sub--) {
      float before[kSub][4], decay[kSub][4];
      read(h, borders + sub * kSub * 32);
      sync_warp();
#pragma unroll
      for (int q = 0; q < kSub; q += 2) {
        const float4 v = *reinterpret_cast<const float4*>(own + sub * kSub + q);
#pragma unroll
        for (int k = 0; k < 2; k++) {
          const float step = k == 0 ? v.x : v.z, in = k == 0 ? v.y : v.w;
          float b[4];
          read(b, bs + (sub * kSub + q + k) * W::row);
#pragma unroll
          for (int i = 0; i < 4; i++) {
            before[q + k][i] = h[i];
            decay[q + k][i] = decay_of<F>(i, step * lane.a[i]);
            h[i] = fmaf(decay[q + k][i], h[i], in * b[i]);
          }
        }
      }
#pragma unroll
      for (int q = kSub - 4; q >= 0; q -= 4) {
        const int t = sub * kSub + q;
        const float4 late = *reinterpret_cast<const float4*>(own + t + 2), early = *reinterpret_cast<const float4*>(own + t);
        const float4 dy4 = *reinterpret_cast<const float4*>(own_dys + t);
        float b[4][4], c[4][4], dx[4], ddt[4];
#pragma unroll
        for (int k = 3; k >= 0; k--) {
          // At the chunk's end nothing waits yet: zeros go where the same lane will store.
          if (k == 1) store(q > 0 && sub == subs - 1 ? t : t + 4);
          read(b[k], bs + (t + k) * W::row);
          read(c[k], cs + (t + k) * W::row);
        }
#pragma unroll
        for (int k = 3; k >= 0; k--) {
          const float step = k == 3 ? late.z : k == 2 ? late.x : k == 1 ? early.z : early.x;
          const float in = k == 3 ? late.w : k == 2 ? late.y : k == 1 ? early.w : early.y;
          const float dy = k == 3 ? dy4.w : k == 2 ? dy4.z : k == 1 ? dy4.y : dy4.x;
          float db[4], dc[4], of_x = 0.f, of_step = 0.f;
#pragma unroll
          for (int i = 0; i < 4; i++) {
            g[i] = fmaf(c[k][i], dy, g[i]);
            db[i] = g[i] * in;
            dc[i] = h[i] * dy;
            of_x = fmaf(g[i], b[k][i], of_x);
            g[i] *= decay[q + k][i];
            const float v = g[i] * before[q + k][i];
            da[i] = fmaf(v, step, da[i]);
            of_step = fmaf(v, lane.a[i], of_step);
            h[i] = before[q + k][i];
          }
          dx[k] = of_x, ddt[k] = of_step;
          kept[k] = sum_weights(db, dc, lane.c % 2);
        }
        kept_result = float2{sum_four(dx, lane.part), sum_four(ddt, lane.part)};
      }
    }
    store(0);
    sync_warp();
    {
      float dx[kMost], ddt[kMost], dt[kMost], unused[kMost], dy[kMost];
      get_pairs(dx, ddt, result, o);
      get_pairs(dt, unused, mine, o);
      get_row(dy, dys, o);
      float d[kMost];
      get_constants(d, own_bias + 32, o);
#pragma unroll
      for (int e = 0; e < kMost; e++) ddt[e] = fmaf(u[e], dx[e], ddt[e] * 0.6931471805599453f);
      if (j.softplus) {
#pragma unroll
        for (int e = 0; e < kMost; e++) ddt[e] *= softplus_slope(dt[e]);
      }
#pragma unroll
      for (int e = 0; e < kMost; e++) {
        ddt[e] = e < there ? ddt[e] : 0.f;
        dx[e] = fmaf(d[e], dy[e], dt[e] * dx[e]);
        dd[time_first ? 0 : e] = fmaf(dy[e], u[e], dd[time_first ? 0 : e]);
        dbias[time_first ? 0 : e] += ddt[e];
      }
      const int64_t time = cross ? token : t0 + o.t;
      put(Eight(j.grad_delta, o, p.b * j.grad_delta.batch_stride, channel, time, there), ddt, false);
      put(Eight(j.grad_u, o, p.b * j.grad_u.batch_stride + p.k * j.u_direction, channel, time, there), dx, j.add);
    }
    sync_block();
    const int64_t blocks = j.groups * j.group_blocks;
    const int64_t to = ((p.launch_slot * blocks + p.block) * j.length + t0) * 2 * j.states;
    for (int e = thread_index(); e < kChunk * 8; e += 128) {
      const int t = e / 8, n = e % 8 * 4;
      float4 sum{0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int from = 0; from < 4; from++) {
        const float4 v = *reinterpret_cast<const float4*>(sums + (from * kChunk + t) * 32 + n);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
      if (t >= steps) continue;
      with_type(j.partial_type, [&](auto tag) {
        using X = decltype(tag);
        X* const row = static_cast<X*>(j.partial) + to + t * 2 * j.states;
        const float four[4] = {sum.x, sum.y, sum.z, sum.w};
        if (j.states == 16) {
          store_four(row + n, four);
        } else {
          for (int i = 0, state = n % 16; i < 4; i++) {
            if (state + i < j.states) row[(n < 16 ? 0 : j.states) + state + i] = X(four[i]);
          }
        }
      });
    }
    token = next_token;
  }
  const int64_t row = p.slot * j.segments + p.segment;
  if constexpr (!gradients) {
    lane.save(g, j, j.carry, row);
    if (lane.active && lane.part == 0) j.sums[row * j.channels + lane.channel] = total;
    return;
  }
  lane.save_channel_first(da, j, j.grad_a, row);
  // Sums over the lanes that share a channel: four that lie side by side, or all.
#pragma unroll
  for (int e = 0; e < (time_first ? 1 : kMost); e++) {
#pragma unroll
    for (int mask = 1; mask < (time_first ? 4 : 32); mask *= 2) dd[e] += shuffle_xor(dd[e], mask), dbias[e] += shuffle_xor(dbias[e], mask);
    const int c = o.channel(e);
    if (o.t != 0 || c >= channels) continue;
    if (j.grad_d != nullptr) j.grad_d[row * j.channels + channel + c] = dd[e];
    if (j.grad_bias != nullptr) j.grad_bias[row * j.channels + channel + c] = dbias[e];
  }
}

}  // namespace vision_mamba
