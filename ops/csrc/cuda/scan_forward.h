// The forward pass of the scans. `outputs`: the last pass; else the one that only finds the segments' final states.
#pragma once
#include "scan_common.h"

namespace vision_mamba {

template <class F, bool outputs>
__global__ void __launch_bounds__(F::threads) scan_forward_kernel(Job j) {
  constexpr int S = F::S;
  const Shared<F> m;
  const Place p = place<F>(j);
  const Lane<F> lane(j, p);
  float h[S], total = 0.f;
#pragma unroll
  for (int i = 0; i < S; i++) h[i] = 0.f;
  if (outputs && j.segments > 1) lane.load(h, j, j.carry, p.slot * j.segments + p.segment);
  for (int64_t chunk = p.first_chunk; chunk < p.last_chunk; chunk++) {
    const int64_t t0 = chunk * kChunk;
    const int steps = int(j.length - t0 < kChunk ? j.length - t0 : kChunk);
    if (outputs && j.checkpoints != nullptr) lane.save(h, j, j.checkpoints, p.slot * j.chunks + chunk);
    sync_block();
    load_chunk<F>(j, p, m, t0, steps);
    sync_block();
#pragma unroll 2
    for (int t = 0; t < kChunk; t += 4) {
      float y[4];
#pragma unroll
      for (int q = 0; q < 4; q++) {
        const float2 v = m.step(t + q, lane.c);
        const float x = v.x * v.y;
        float b[S];
        lane.read_b(b, j, m, t + q);
        y[q] = 0.f;
        if (!outputs) total += v.x;
        if constexpr (outputs) {
          float c[S];
          lane.read_c(c, j, m, t + q);
#pragma unroll
          for (int i = 0; i < S; i++) h[i] = fmaf(decay_of<F>(i, v.x * lane.a[i]), h[i], x * b[i]), y[q] = fmaf(h[i], c[i], y[q]);
        } else {
#pragma unroll
          for (int i = 0; i < S; i++) h[i] = fmaf(decay_of<F>(i, v.x * lane.a[i]), h[i], x * b[i]);
        }
      }
      // An output takes the place of its step size, which nobody needs any more: the exchange has come after everybody's reading.
      if constexpr (outputs && F::P == 4) {
        const float sum = sum_four(y, lane.part);
        sync_warp();
        m.step(t + lane.part, lane.c).x = sum;
      } else if constexpr (outputs) {
#pragma unroll
        for (int q = 0; q < 4; q++) y[q] = sum_parts<F>(y[q]);
        sync_warp();
#pragma unroll
        for (int q = 0; q < 4; q++) {
          if (lane.part == 0) m.step(t + q, lane.c).x = y[q];
        }
      }
    }
    if constexpr (outputs) {
      sync_block();
      // Where the gate's elements are spread over the threads in another way than the output's, it is put on in the tile.
      const bool gate = j.z.data != nullptr, in_tile = gate && (j.z.time_stride == 1) != (j.out.time_stride == 1);
      const float* d = j.d != nullptr ? j.d + p.k * j.channels + p.channel : nullptr;
      auto with_skip = [&](int c, int t) {
        const float2 v = m.step(t, c);
        return d != nullptr && c < p.count ? fmaf(d[c], v.y, v.x) : v.x;
      };
      if (in_tile) {
#pragma unroll 1
        for (int piece = 0; piece < F::pieces; piece++) {
          float z[F::elements];
          fetch<F>(z, j.z, p.b * j.z.batch_stride, p, t0, steps, nullptr, piece);
          Walk<F> w(j.z.time_stride == 1, piece);
#pragma unroll
          for (int i = 0; i < F::elements; i++, w.step()) m.step(w.t, w.c).x = with_skip(w.c, w.t) * z[i] * sigmoid(z[i]);
        }
        sync_block();
      }
#pragma unroll 1
      for (int piece = 0; piece < F::pieces; piece++) {
        float z[F::elements];
        if (gate && !in_tile) fetch<F>(z, j.z, p.b * j.z.batch_stride, p, t0, steps, nullptr, piece);
        store<F>(j.out, p.b * j.out.batch_stride, p, t0, steps, m.order(), j.add, piece, [&](int c, int t, int i) {
          if (in_tile) return m.step(t, c).x;
          const float y = with_skip(c, t);
          return gate ? y * z[i] * sigmoid(z[i]) : y;
        });
      }
    }
  }
  const int64_t row = p.slot * j.segments + p.segment;
  if constexpr (outputs) {
    if (j.last_state != nullptr && p.segment == j.segments - 1) lane.save_channel_first(h, j, j.last_state, p.slot);
  } else {
    lane.save(h, j, j.carry, row);
    if (lane.active && lane.part == 0) j.sums[row * j.channels + lane.channel] = total;
  }
}

}  // namespace vision_mamba
