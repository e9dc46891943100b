// The forward pass of several directions with one state.
#pragma once
#include "one_common.h"

namespace vision_mamba {

// `j.out` is of the map's type where sums stand in shared memory, else float32.
template <class F, class X>
__global__ void __launch_bounds__(kOneThreads, 2) one_forward_kernel(Job j) {
  const OneShared<F> m(j);
  const OneLane<F> lane(j);
  const TokenNumbers<F, X> numbers(j, lane);
  const Column<X> map(j.u, lane);
  const Column<std::conditional_t<F::resident, X, float>> out(j.out, lane);
  const int row = int(one_row(j.rank)), r4 = int(padded_ranks(j.rank));
  float* const tile = m.weights + lane.warp * F::tokens * row;
  const float* const bc = tile + lane.piece * row + r4;
  float2* const summaries = reinterpret_cast<float2*>(m.summaries);
  const int tiles = int((j.length + F::tile - 1) / F::tile);
  // Padding is read, and must be a number.
  for (int i = lane.lane; i < F::tokens * row; i += 32) tile[i] = 0.f;
  int parity = 0;
  for (int64_t k = 0; k < j.directions; k++) {
    sync_block();
    load_dt_weight(m.dt_weight, j, lane, k);
    sync_block();
    const int64_t of_channel = k * j.channels + lane.channel;
    const float a2 = j.a[of_channel] * kLog2e, skip = j.d != nullptr ? j.d[of_channel] : 0.f, bias = j.bias != nullptr ? j.bias[of_channel] : 0.f;
    float carry = 0.f, u[kOneSteps];
    Pair<X> pairs[kAhead];
    Token tokens = lane.token(j, k, 0);
    numbers.ask(pairs, j, k, tokens);
    read_steps(u, map, lane, tokens);
    for (int at = 0; at < tiles; at++, parity ^= 1) {
      const int start = lane.start(at), left = lane.left(j, start);
      numbers.place(tile, pairs);
      numbers.rest(tile, j, k, tokens);
      sync_warp();
      float decay[kOneSteps], in[kOneSteps], c[kOneSteps], y[kOneSteps];
      project_steps(decay, j, lane, tile, m.dt_weight, bias, left);
      float product = 0.f, state = 0.f;
#pragma unroll
      for (int t = 0; t < kOneSteps; t++) {
        const float step = decay[t];
        const float2 v = *reinterpret_cast<const float2*>(bc + t * F::pieces * row);
        in[t] = step * u[t] * v.x, c[t] = v.y, y[t] = skip * u[t];
        decay[t] = fast_exp2(step * a2);
        product += step;
        state = fmaf(decay[t], state, in[t]);
      }
      product = fast_exp2(product * a2);
      // Within the warp: what the pieces up to this one do together, then without it.
#pragma unroll
      for (int mask = F::channels; mask < 32; mask *= 2) {
        const int from = lane.lane < mask ? lane.lane : lane.lane - mask;
        const float p = shuffle_from(product, from), s = shuffle_from(state, from);
        if (lane.lane >= mask) state = fmaf(product, s, state), product *= p;
      }
      float2* const told = summaries + parity * kOneWarps * F::channels + lane.c;
      if (lane.piece == F::pieces - 1) told[lane.warp * F::channels] = float2{product, state};
      float before = 1.f, reached = 0.f;
      if constexpr (F::pieces > 1) {
        const int from = lane.piece > 0 ? lane.lane - F::channels : lane.lane;
        before = shuffle_from(product, from), reached = shuffle_from(state, from);
        if (lane.piece == 0) before = 1.f, reached = 0.f;
      }
      const Token here = tokens;
      if (at + 1 < tiles) {
        tokens = lane.token(j, k, at + 1);
        numbers.ask(pairs, j, k, tokens);
        read_steps(u, map, lane, tokens);
      }
      sync_block();
      float h = carry;
#pragma unroll
      for (int w = 0; w < kOneWarps; w++) {
        const float2 v = told[w * F::channels];
        if (w == lane.warp) h = carry;
        carry = fmaf(v.x, carry, v.y);
      }
      h = fmaf(before, h, reached);
      if (j.checkpoints != nullptr && start % kChunk == 0 && left > 0) {
        j.checkpoints[((lane.b * j.directions + k) * j.chunks + start / kChunk) * j.channels + lane.channel] = h;
      }
#pragma unroll
      for (int t = 0; t < kOneSteps; t++) h = fmaf(decay[t], h, in[t]), y[t] = fmaf(h, c[t], y[t]);
      if constexpr (F::resident) {
        const bool first = k == 0, last = k == j.directions - 1;
#pragma unroll
        for (int t = 0; t < kOneSteps; t++) {
          float& sum = m.sums[lane.place_of(here, t)];
          y[t] += first ? 0.f : sum;
          if (t < left) sum = y[t];
        }
        if (last) {
#pragma unroll
          for (int t = 0; t < kOneSteps; t++) {
            const int token = lane.token_of(here, t);
            if (t < left) out[token] = X(y[t]);
          }
        }
      } else {
#pragma unroll
        for (int t = 0; t < kOneSteps; t++) {
          float& to = out[lane.token_of(here, t)];
          if (t < left) to = k == 0 ? y[t] : to + y[t];
        }
      }
    }
  }
}

}  // namespace vision_mamba
