// The causal convolution: one thread an output; its gradient with respect to the sums goes through memory once.
#pragma once
#include "scan_common.h"

namespace vision_mamba {

struct ConvJob {
  int64_t batch, channels, length, width;
  Sequence x, out;  // `out` is the gradient of x in the backward pass
  Sequence grad_out;
  const float *weight, *bias;
  bool silu;
  float* grad_sums;                 // (B, D, L)
  float *grad_weight, *grad_bias;   // (B, D, W), (B, D)
};

__device__ __forceinline__ float load_one(const Sequence& s, int64_t at) {
  float y = 0.f;
  with_type(s.type, [&](auto tag) { y = float(static_cast<const decltype(tag)*>(s.data)[at]); });
  return y;
}
__device__ __forceinline__ int64_t at(const Sequence& s, int64_t b, int64_t d, int64_t t) {
  return b * s.batch_stride + d * s.row_stride + t * s.time_stride;
}
// The (b, d, t) of this thread, neighbours where memory has them.
__device__ __forceinline__ bool conv_place(const ConvJob& j, bool time_first, int64_t& b, int64_t& d, int64_t& t) {
  int64_t i = block_index() * 128 + thread_index();
  if (i >= j.batch * j.channels * j.length) return false;
  if (time_first) {
    t = i % j.length, i /= j.length, d = i % j.channels, b = i / j.channels;
  } else {
    d = i % j.channels, i /= j.channels, t = i % j.length, b = i / j.length;
  }
  return true;
}
__device__ __forceinline__ float conv_sum(const ConvJob& j, int64_t b, int64_t d, int64_t t) {
  float sum = j.bias != nullptr ? j.bias[d] : 0.f;
  with_type(j.x.type, [&](auto tag) {
    const auto* x = static_cast<const decltype(tag)*>(j.x.data);
    for (int64_t k = j.width - 1 < t ? 0 : j.width - 1 - t; k < j.width; k++) {
      sum = fmaf(j.weight[d * j.width + k], float(x[at(j.x, b, d, t - (j.width - 1) + k)]), sum);
    }
  });
  return sum;
}

__global__ void conv_forward_kernel(ConvJob j) {
  int64_t b, d, t;
  if (!conv_place(j, j.x.time_stride == 1, b, d, t)) return;
  const float sum = conv_sum(j, b, d, t), y = j.silu ? sum * sigmoid(sum) : sum;
  with_type(j.out.type, [&](auto tag) { static_cast<decltype(tag)*>(j.out.data)[at(j.out, b, d, t)] = decltype(tag)(y); });
}
__global__ void conv_grad_sums_kernel(ConvJob j) {
  int64_t b, d, t;
  if (!conv_place(j, j.x.time_stride == 1, b, d, t)) return;
  float g = load_one(j.grad_out, at(j.grad_out, b, d, t));
  if (j.silu) {
    const float sum = conv_sum(j, b, d, t), s = sigmoid(sum);
    g *= s * (1.f + sum * (1.f - s));
  }
  j.grad_sums[(b * j.channels + d) * j.length + t] = g;
}
__global__ void conv_grad_x_kernel(ConvJob j) {
  int64_t b, d, t;
  if (!conv_place(j, true, b, d, t)) return;
  const float* g = j.grad_sums + (b * j.channels + d) * j.length;
  float sum = 0.f;
  for (int64_t k = 0; k < j.width && t + k < j.length; k++) sum = fmaf(j.weight[d * j.width + j.width - 1 - k], g[t + k], sum);
  with_type(j.out.type, [&](auto tag) { static_cast<decltype(tag)*>(j.out.data)[at(j.out, b, d, t)] = decltype(tag)(sum); });
}
// A block a (batch, channel): every thread adds its steps, then the threads are added in a fixed tree.
__global__ void conv_grad_weight_kernel(ConvJob j) {
  float* sums = reinterpret_cast<float*>(shared_memory());
  const int64_t row = block_index(), b = row / j.channels, d = row % j.channels;
  const float* g = j.grad_sums + row * j.length;
  for (int64_t k = 0; k <= j.width; k++) {  // the last one is the bias
    float sum = 0.f;
    const int64_t shift = k - (j.width - 1);
    for (int64_t t = thread_index(); t < j.length; t += 128) {
      if (k == j.width) {
        sum += g[t];
      } else if (t + shift >= 0) {
        sum = fmaf(g[t], load_one(j.x, at(j.x, b, d, t + shift)), sum);
      }
    }
    sums[thread_index()] = sum;
    for (int half = 64; half > 0; half /= 2) {
      sync_block();
      if (thread_index() < half) sums[thread_index()] += sums[thread_index() + half];
    }
    if (thread_index() == 0) (k == j.width ? j.grad_bias[row] : j.grad_weight[row * j.width + k]) = sums[0];
    sync_block();
  }
}

}  // namespace vision_mamba
