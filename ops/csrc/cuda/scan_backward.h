// The backward pass of the scans. With g[t] the adjoint of the state h[t], everything that comes later included:
//   g[t] = C[t] dy[t] + a[t+1] g[t+1]        dC[t] = h[t] dy[t]      dB[t] = g[t] x[t]      x[t] = dt[t] u[t]
//   dx[t] = sum of g[t] B[t]                 d(dt)[t] = u[t] dx[t] + sum of g[t] a[t] h[t-1] A
// The states are computed again from those stored at the chunks' starts: once along the chunk to its eighths' starts, then eight steps at a time.
#pragma once
#include "scan_common.h"

namespace vision_mamba {

// Sums V numbers over the L lanes of a warp that are P apart; each exchange halves the numbers that a lane still has. Returns the lane's sum, of the number `which`;
// `mine` is false where another lane has the same.
template <int V, int P, int L>
__device__ __forceinline__ float sum_channels(float (&v)[V], int& which, bool& mine) {
  which = 0, mine = true;
  const int lane = thread_index() % 32;
  int left = V;
#pragma unroll
  for (int mask = P * L / 2; mask >= P; mask /= 2) {
    const bool up = lane & mask;
    if (left > 1) {
      left /= 2;
#pragma unroll
      for (int i = 0; i < V / 2; i++) {
        if (i >= left) break;
        const float keep = up ? v[i + left] : v[i], give = up ? v[i] : v[i + left];
        v[i] = keep + shuffle_xor(give, mask);
      }
      which += up ? left : 0;
    } else {
      v[0] += shuffle_xor(v[0], mask);
      mine = mine && !up;
    }
  }
  return v[0];
}

template <class F>
__device__ __forceinline__ void load_grad_out(const Job& j, const Place& p, const Shared<F>& m, float* dys, int64_t t0, int steps) {
#pragma unroll 1
  for (int piece = 0; piece < F::pieces; piece++) {
    float r[F::elements];
    if (j.grad_out.data == nullptr) {
#pragma unroll
      for (int i = 0; i < F::elements; i++) r[i] = 0.f;
    } else {
      fetch<F>(r, j.grad_out, p.b * j.grad_out.batch_stride, p, t0, steps, m.order(), piece);
    }
    put<F>(dys, 1, r, j.grad_out.time_stride == 1 && !F::cross, piece);
  }
  if (j.z.data == nullptr) return;
  sync_block();
#pragma unroll 1
  for (int piece = 0; piece < F::pieces; piece++) {
    float r[F::elements];
    fetch<F>(r, j.z, p.b * j.z.batch_stride, p, t0, steps, nullptr, piece);
    Walk<F> w(j.z.time_stride == 1, piece);
#pragma unroll
    for (int i = 0; i < F::elements; i++, w.step()) dys[w.t * F::width + w.c] *= r[i] * sigmoid(r[i]);
  }
}

// The gradient of the gate, from the outputs before it.
template <class F>
__device__ __forceinline__ void store_grad_z(const Job& j, const Place& p, const Shared<F>& m, const float* ys, int64_t t0, int steps) {
  with_type(j.z.type, [&](auto tag) {
    using Z = decltype(tag);
    with_type(j.grad_out.type, [&](auto other) {
      using G = decltype(other);
      const Z* z = static_cast<const Z*>(j.z.data) + p.b * j.z.batch_stride + p.channel * j.z.row_stride + t0 * j.z.time_stride;
      const G* g = static_cast<const G*>(j.grad_out.data);
      if (g != nullptr) g += p.b * j.grad_out.batch_stride + p.channel * j.grad_out.row_stride + t0 * j.grad_out.time_stride;
#pragma unroll 1
      for (int piece = 0; piece < F::pieces; piece++) {
        store<F>(j.grad_z, p.b * j.grad_z.batch_stride, p, t0, steps, nullptr, false, piece, [&](int c, int t, int) {
          if (g == nullptr) return 0.f;
          const float x = float(z[c * j.z.row_stride + t * j.z.time_stride]), s = sigmoid(x);
          const float dy = float(g[c * j.grad_out.row_stride + t * j.grad_out.time_stride]);
          const float y = ys[t * F::width + c] + (j.d != nullptr ? j.d[p.channel + c] * m.step(t, c).y : 0.f);
          return dy * y * s * (1.f + x * (1.f - s));
        });
      }
    });
  });
}

// The adjoint that leaves each segment at its start when none comes in at its end.
template <class F>
__global__ void __launch_bounds__(F::threads) adjoint_kernel(Job j) {
  constexpr int S = F::S;
  const Shared<F> m;
  const Place p = place<F>(j);
  const Lane<F> lane(j, p);
  float* dys = m.rest;
  float g[S], total = 0.f;
#pragma unroll
  for (int i = 0; i < S; i++) g[i] = 0.f;
  for (int64_t chunk = p.last_chunk; chunk-- > p.first_chunk;) {
    const int64_t t0 = chunk * kChunk;
    const int steps = int(j.length - t0 < kChunk ? j.length - t0 : kChunk);
    sync_block();
    load_chunk<F>(j, p, m, t0, steps);
    load_grad_out<F>(j, p, m, dys, t0, steps);
    sync_block();
#pragma unroll 4
    for (int t = kChunk - 1; t >= 0; t--) {
      const float dt = m.step(t, lane.c).x, dy = dys[t * F::width + lane.c];
      float c[S];
      lane.read_c(c, j, m, t);
      total += dt;
#pragma unroll
      for (int i = 0; i < S; i++) g[i] = decay_of<F>(i, dt * lane.a[i]) * fmaf(c[i], dy, g[i]);
    }
  }
  const int64_t row = p.slot * j.segments + p.segment;
  lane.save(g, j, j.carry, row);
  if (lane.active && lane.part == 0) j.sums[row * j.channels + lane.channel] = total;
}

template <class F>
__global__ void __launch_bounds__(F::threads) scan_backward_kernel(Job j) {
  constexpr int S = F::S, subs = kChunk / kSub;
  const Shared<F> m;
  const Place p = place<F>(j);
  const Lane<F> lane(j, p);
  float* dys = m.rest;
  float* ys = dys + kChunk * F::width;
  float* sums = ys + kChunk * F::width;  // [warp][step][B, then C]
  const int warp = thread_index() / 32;
  float g[S], da[S], db_constant[S], dc_constant[S], dd = 0.f, dbias = 0.f;
#pragma unroll
  for (int i = 0; i < S; i++) {
    const bool given = j.segments == 1 && j.grad_last_state != nullptr && lane.active && lane.n0 + i < j.states;
    g[i] = given ? j.grad_last_state[(p.slot * j.channels + lane.channel) * j.states + lane.n0 + i] : 0.f;
    da[i] = db_constant[i] = dc_constant[i] = 0.f;
  }
  if (j.segments > 1) lane.load(g, j, j.carry, p.slot * j.segments + p.segment);
  const float skip = j.d != nullptr ? j.d[p.k * j.channels + lane.channel] : 0.f;
  for (int64_t chunk = p.last_chunk; chunk-- > p.first_chunk;) {
    const int64_t t0 = chunk * kChunk;
    const int steps = int(j.length - t0 < kChunk ? j.length - t0 : kChunk);
    sync_block();
    load_chunk<F>(j, p, m, t0, steps);
    load_grad_out<F>(j, p, m, dys, t0, steps);
    float border[subs][S], h[S];
    lane.load(h, j, j.checkpoints, p.slot * j.chunks + chunk);
    sync_block();
#pragma unroll
    for (int sub = 0; sub < subs; sub++) {
#pragma unroll
      for (int i = 0; i < S; i++) border[sub][i] = h[i];
      if (sub == subs - 1 && j.z.data == nullptr) break;
#pragma unroll 4
      for (int q = 0; q < kSub; q++) {
        const int t = sub * kSub + q;
        const float2 v = m.step(t, lane.c);
        const float x = v.x * v.y;
        float b[S];
        lane.read_b(b, j, m, t);
#pragma unroll
        for (int i = 0; i < S; i++) h[i] = fmaf(decay_of<F>(i, v.x * lane.a[i]), h[i], x * b[i]);
        if (j.z.data != nullptr) {
          float c[S], y = 0.f;
          lane.read_c(c, j, m, t);
#pragma unroll
          for (int i = 0; i < S; i++) y = fmaf(h[i], c[i], y);
          y = sum_parts<F>(y);
          if (lane.part == 0) ys[t * F::width + lane.c] = y;
        }
      }
    }
    if (j.z.data != nullptr) {
      sync_block();
      store_grad_z<F>(j, p, m, ys, t0, steps);
      sync_block();
    }
#pragma unroll
    for (int sub = subs - 1; sub >= 0; sub--) {
      float before[kSub][S], decay[kSub][S];
#pragma unroll
      for (int i = 0; i < S; i++) h[i] = border[sub][i];
#pragma unroll
      for (int q = 0; q < kSub; q++) {
        const float2 v = m.step(sub * kSub + q, lane.c);
        const float x = v.x * v.y;
        float b[S];
        lane.read_b(b, j, m, sub * kSub + q);
#pragma unroll
        for (int i = 0; i < S; i++) {
          before[q][i] = h[i];
          decay[q][i] = decay_of<F>(i, v.x * lane.a[i]);
          h[i] = fmaf(decay[q][i], h[i], x * b[i]);
        }
      }
#pragma unroll
      for (int q = kSub - 1; q >= 0; q--) {
        const int t = sub * kSub + q;
        const float2 v = m.step(t, lane.c);
        const float dy = dys[t * F::width + lane.c], x = v.x * v.y;
        float b[S], c[S], both[2 * S], dx = 0.f, ddt = 0.f;
        lane.read_b(b, j, m, t);
        lane.read_c(c, j, m, t);
#pragma unroll
        for (int i = 0; i < S; i++) {
          g[i] = fmaf(c[i], dy, g[i]);
          both[i] = g[i] * x;
          both[S + i] = h[i] * dy;
          dx = fmaf(g[i], b[i], dx);
          g[i] *= decay[q][i];
          const float w = g[i] * before[q][i];
          da[i] = fmaf(w, v.x, da[i]);
          ddt = fmaf(w, lane.a[i], ddt);
          h[i] = before[q][i];
          if (!F::varying && !F::cross) db_constant[i] += both[i], dc_constant[i] += both[S + i];
        }
        dx = sum_parts<F>(dx), ddt = sum_parts<F>(ddt);
        ddt = fmaf(v.y, dx, ddt * 0.6931471805599453f);
        // The derivative of the softplus, from its value.
        if (j.softplus) ddt *= softplus_slope(v.x);
        dd = fmaf(dy, v.y, dd), dbias += t < steps ? ddt : 0.f;
        // All parts of the channel have read what the first one overwrites.
        if constexpr (F::P > 1) sync_warp();
        if (lane.part == 0) m.step(t, lane.c) = float2{ddt, fmaf(skip, dy, v.x * dx)};
        int which;
        bool mine;
        const float sum = sum_channels<2 * S, F::P, F::lanes>(both, which, mine);
        if constexpr (F::lanes > 1) {
          if (mine) {
            const int n = which < S ? lane.n0 + which : F::states + lane.n0 + which - S;
            sums[(warp * kSub + q) * 2 * F::states + n] = sum;
            // Fewer lanes than numbers: each has several.
            if constexpr (2 * S > F::lanes) {
#pragma unroll
              for (int i = 1; i < 2 * S / F::lanes; i++) sums[(warp * kSub + q) * 2 * F::states + n + i] = both[i];
            }
          }
        } else {
#pragma unroll
          for (int i = 0; i < S; i++) {
            sums[(warp * kSub + q) * 2 * F::states + lane.n0 + i] = both[i];
            sums[(warp * kSub + q) * 2 * F::states + F::states + lane.n0 + i] = both[S + i];
          }
        }
      }
      if (j.partial != nullptr) {
        sync_block();
        const int64_t blocks = j.groups * j.group_blocks;
        float* to = static_cast<float*>(j.partial) + (p.launch_slot * blocks + p.block) * j.length * 2 * j.states;
        for (int e = thread_index(); e < kSub * 2 * F::states; e += F::threads) {
          const int q = e / (2 * F::states), n = e % (2 * F::states), state = n % F::states;
          if (state >= j.states || sub * kSub + q >= steps) continue;
          float sum = sums[e];
          for (int w = 1; w < F::warps; w++) sum += sums[w * kSub * 2 * F::states + e];
          to[(t0 + sub * kSub + q) * 2 * j.states + (n < F::states ? 0 : j.states) + state] = sum;
        }
        sync_block();
      }
    }
    sync_block();
#pragma unroll 1
    for (int piece = 0; piece < F::pieces; piece++) {
      store<F>(j.grad_delta, p.b * j.grad_delta.batch_stride, p, t0, steps, m.order(), false, piece,
               [&](int c, int t, int) { return m.step(t, c).x; });
      store<F>(j.grad_u, p.b * j.grad_u.batch_stride + p.k * j.u_direction, p, t0, steps, m.order(), j.add, piece,
               [&](int c, int t, int) { return m.step(t, c).y; });
    }
  }
  const int64_t row = p.slot * j.segments + p.segment;
  lane.save_channel_first(da, j, j.grad_a, row);
  if (j.grad_b != nullptr) lane.save_channel_first(db_constant, j, j.grad_b, row);
  if (j.grad_c != nullptr) lane.save_channel_first(dc_constant, j, j.grad_c, row);
  if (lane.active && lane.part == 0) {
    if (j.grad_d != nullptr) j.grad_d[row * j.channels + lane.channel] = dd;
    if (j.grad_bias != nullptr) j.grad_bias[row * j.channels + lane.channel] = dbias;
  }
}

// Adds the blocks' shares of the gradients of B, of C or of both, in their order.
struct MergeJob {
  int64_t batch, length, groups, blocks;  // blocks of channels in all; a group has blocks / groups
  int64_t row, first, count;              // numbers that a share has of a step; those wanted
  const void* partial;
  Scalar type;
  Sequence to;  // (batch, number, time)
  int64_t group_stride;
  const int32_t* tokens;
};
__global__ void merge_kernel(MergeJob j) {
  const int64_t i = block_index() * 128 + thread_index();
  if (i >= j.batch * j.groups * j.length * j.count) return;
  const int64_t n = i % j.count, t = i / j.count % j.length, group = i / j.count / j.length % j.groups, b = i / j.count / j.length / j.groups;
  const int64_t share = j.blocks / j.groups;
  float sum = 0.f;
  with_type(j.type, [&](auto tag) {
    const auto* from = static_cast<const decltype(tag)*>(j.partial) + ((b * j.blocks + group * share) * j.length + t) * j.row + j.first + n;
#pragma unroll 8
    for (int64_t k = 0; k < share; k++) sum += float(from[k * j.length * j.row]);
  });
  int64_t time = t;
  if (j.tokens != nullptr) {
    time = j.tokens[t];
    time = time < 0 ? 0 : time >= j.length ? j.length - 1 : time;
  }
  const int64_t at = b * j.to.batch_stride + group * j.group_stride + n * j.to.row_stride + time * j.to.time_stride;
  with_type(j.to.type, [&](auto tag) { static_cast<decltype(tag)*>(j.to.data)[at] = decltype(tag)(sum); });
}

}  // namespace vision_mamba
