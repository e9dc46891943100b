// The forward pass of the scans of 2 to 16 states. `outputs`: the last pass; else the one that only finds the segments' final states.
#pragma once
#include "warp_common.h"

namespace vision_mamba {

template <bool cross>
constexpr size_t warp_forward_bytes(int64_t rank) {
  // Slots of sixteen bytes: step size, input, B or C (tokens' numbers in place of these), two each; tiles; B and C twice, so that one barrier a chunk is enough.
  return sizeof(float) * size_t(6 * 4 * 128 + WarpForm<cross>::pairs + WarpForm<cross>::tile + (cross ? 1 : 2) * WeightTile<1>::floats + kConstants + (cross ? rank * (33 + 32) : 0));
}

template <bool cross, bool time_first, bool outputs>
__global__ void __launch_bounds__(128) warp_forward_kernel(Job j) {
  using F = WarpForm<cross>;
  using W = WeightTile<1>;
  float4* slots = reinterpret_cast<float4*>(shared_memory());
  float* const pairs = reinterpret_cast<float*>(slots + 6 * 128);
  float* const rows = pairs + F::pairs;
  float* const weights = rows + F::tile;
  float* const constants = weights + (cross ? 1 : 2) * W::floats;
  float* const dt_weight = constants + kConstants;
  float* const ranks = dt_weight + (cross ? j.rank * 32 : 0);
  uint32_t* const raw = reinterpret_cast<uint32_t*>(slots + 2 * 128);
  slots += thread_index();
  const int warp = thread_index() / 32;
  float2* const mine = reinterpret_cast<float2*>(pairs) + warp * kWarpChannels * kPairRow;
  float* const out = rows + warp * kWarpChannels * kRow;

  const Place p = place<F>(j);
  const Owner<time_first> o;
  const WarpLane lane(j, p, false);
  const W w(j, p);
  const int64_t channel = p.channel + warp * kWarpChannels;
  const int channels = p.count - warp * kWarpChannels;  // may be below zero
  const int64_t u_offset = p.b * j.u.batch_stride + p.k * j.u_direction, delta_offset = p.b * j.delta.batch_stride;
  bool u_asked = false, delta_asked = false, w_asked = false;
  auto steps_of = [&](int64_t chunk) { return int(j.length - chunk * kChunk < kChunk ? j.length - chunk * kChunk : kChunk); };
  auto ask = [&](int64_t chunk, int token) {
    const int64_t t0 = chunk * kChunk;
    const int steps = steps_of(chunk), there = o.there(channels, steps);
    u_asked = stage(slots, Eight(j.u, o, u_offset, channel, cross ? token : t0 + o.t, there));
    if (cross && j.token_words > 0) ask_tokens(j, p, raw, token);
    if constexpr (!cross) {
      delta_asked = stage(slots + 2 * 128, Eight(j.delta, o, delta_offset, channel, t0 + o.t, there));
      w_asked = w.stage(slots + 4 * 128, j, t0, steps);
    }
  };

  float h[4], total = 0.f;
#pragma unroll
  for (int i = 0; i < 4; i++) h[i] = 0.f;
  if (outputs && j.segments > 1) lane.load(h, j, j.carry, p.slot * j.segments + p.segment);
  int token = 0, next_token = 0;
  const float* const own_bias = constants + warp * kWarpChannels;
  load_constants(j, p, constants);
  if constexpr (cross) {
    clear_weights<1>(weights, 1);
    load_dt_weight(j, p, dt_weight);
    token = token_at(j, p, p.first_chunk * kChunk + o.t);
  }
  sync_block();
  ask(p.first_chunk, token);
  for (int64_t chunk = p.first_chunk; chunk < p.last_chunk; chunk++) {
    const int64_t t0 = chunk * kChunk;
    const int steps = steps_of(chunk), there = o.there(channels, steps);
    if (outputs && j.checkpoints != nullptr) lane.save(h, j, j.checkpoints, p.slot * j.chunks + chunk);
    if constexpr (cross) next_token = token_at(j, p, t0 + kChunk + o.t);
    float* const tile = weights + (cross ? 0 : (chunk & 1) * W::floats);
    float u[kMost], dt[kMost], x[kMost];
    if constexpr (cross) {
      wait_copies();
      if (j.token_words > 0) {
        sync_warp();
        take_tokens<1>(j, raw, ranks, tile, steps);
      } else {
        load_tokens<1>(j, p, ranks, tile, token, steps);
      }
    } else {
      wait_copies();
      w.unstage(tile, slots + 4 * 128, w_asked);
      take(dt, slots + 2 * 128, j.delta.type, delta_asked);
      take(u, slots, j.u.type, u_asked);
    }
    if constexpr (!cross) {
      finish_steps(dt, j, own_bias, o, there);
#pragma unroll
      for (int e = 0; e < kMost; e++) x[e] = dt[e] * u[e];
      put_pairs(mine, o, dt, x);
    }
    sync_block();
    if constexpr (cross) {
      take(u, slots, j.u.type, u_asked);
      project(dt, j, ranks, dt_weight);
      finish_steps(dt, j, own_bias, o, there);
#pragma unroll
      for (int e = 0; e < kMost; e++) x[e] = dt[e] * u[e];
      put_pairs(mine, o, dt, x);
      sync_warp();
    }
    if (chunk + 1 < p.last_chunk) ask(chunk + 1, next_token);
    const float* const bc = tile + lane.part * 4;
    const float2* const own = mine + lane.c * kPairRow;
#pragma unroll 2
    for (int t = 0; t < kChunk; t += 4) {
      float y[4];
#pragma unroll
      for (int q = 0; q < 4; q += 2) {
        const float4 v = *reinterpret_cast<const float4*>(own + t + q);
#pragma unroll
        for (int k = 0; k < 2; k++) {
          const float step = k == 0 ? v.x : v.z, in = k == 0 ? v.y : v.w;
          float b[4];
          read(b, bc + (t + q + k) * W::row);
          if (!outputs) total += step;
          if constexpr (outputs) {
            float c[4], sum = 0.f;
            read(c, bc + (t + q + k) * W::row + 16);
#pragma unroll
            for (int i = 0; i < 4; i++) h[i] = fmaf(decay_of<F>(i, step * lane.a[i]), h[i], in * b[i]), sum = fmaf(h[i], c[i], sum);
            y[q + k] = sum;
          } else {
#pragma unroll
            for (int i = 0; i < 4; i++) h[i] = fmaf(decay_of<F>(i, step * lane.a[i]), h[i], in * b[i]);
          }
        }
      }
      if constexpr (outputs) out[lane.c * kRow + t + lane.part] = sum_four(y, lane.part);
    }
    if constexpr (outputs) {
      sync_warp();
      float y[kMost];
      get_row(y, out, o);
      if (j.d != nullptr) {
        float d[kMost];
        get_constants(d, own_bias + 32, o);
#pragma unroll
        for (int e = 0; e < kMost; e++) y[e] = fmaf(d[e], u[e], y[e]);
      }
      if (!cross && j.z.data != nullptr) {
        float z[kMost];
        get(z, Eight(j.z, o, p.b * j.z.batch_stride, channel, t0 + o.t, there));
#pragma unroll
        for (int e = 0; e < kMost; e++) y[e] *= z[e] * sigmoid(z[e]);
      }
      put(Eight(j.out, o, p.b * j.out.batch_stride, channel, cross ? token : t0 + o.t, there), y, j.add);
    }
    if constexpr (cross) {
      token = next_token;
      sync_block();
    } else {
      sync_warp();
    }
  }
  if constexpr (outputs) {
    if (j.last_state != nullptr && p.segment == j.segments - 1) lane.save_channel_first(h, j, j.last_state, p.slot);
  } else {
    const int64_t row = p.slot * j.segments + p.segment;
    lane.save(h, j, j.carry, row);
    if (lane.active && lane.part == 0) j.sums[row * j.channels + lane.channel] = total;
  }
}

}  // namespace vision_mamba
