// The causal depthwise convolution. A vector holds neighbouring channels; a tile holds a chunk of time and the W - 1 steps around it.
#pragma once
#include "tile.h"

namespace vision_mamba {
namespace VM_ISA {

static constexpr int64_t kConvChunk = 64;

// Steps t0 - before .. t0 + steps of a sequence, zero outside 0..length.
template <class T>
static void load_padded(T* tile, const Sequence& s, int64_t batch, int64_t channel, int rows, int64_t from, int64_t to, int64_t length) {
  constexpr int V = kLanes<T>;
  const int64_t begin = from < 0 ? 0 : from, end = to > length ? length : to;
  for (int64_t t = from; t < (begin < to ? begin : to); t++) store<T>(tile + (t - from) * V, vec<T>{});
  if (begin < end) load_tile<T>(tile + (begin - from) * V, V, s, batch, channel, rows, begin, end - begin, kConvChunk);
  for (int64_t t = end > from ? end : from; t < to; t++) store<T>(tile + (t - from) * V, vec<T>{});
}

// The sums before the activation. W is the width where it is one of the usual ones, else 0.
template <class T, int W>
VM_INLINE vec<T> window(const T* x, const T* weight, vec<T> bias, int64_t width) {
  constexpr int V = kLanes<T>;
  const int64_t taps = W > 0 ? W : width;
  vec<T> sum = bias;
  for (int64_t k = 0; k < taps; k++) sum += load(weight + k * V) * load(x + k * V);
  return sum;
}

struct ConvItem {
  int64_t batch, channel;
  int rows;
};
template <class T>
static ConvItem conv_item(const Conv& conv, int64_t index) {
  constexpr int V = kLanes<T>;
  const int64_t blocks = (conv.channels + V - 1) / V;
  ConvItem item;
  item.batch = index / blocks;
  item.channel = index % blocks * V;
  item.rows = conv.channels - item.channel < V ? int(conv.channels - item.channel) : V;
  return item;
}

template <class T>
static void load_taps(T* taps, const Conv& conv, const ConvItem& item) {
  for (int64_t k = 0; k < conv.width; k++) {
    store<T>(taps + k * kLanes<T>, gather<T>((const T*)conv.weight + item.channel * conv.width + k, conv.width, item.rows));
  }
}

template <class T, int W>
static void conv_forward_width(const ConvForward& f, int64_t first, int64_t last) {
  constexpr int V = kLanes<T>;
  const Conv& conv = f.conv;
  const int64_t before = conv.width - 1;
  [[maybe_unused]] FlushDenormals flush;
  Scratch scratch(sizeof(T) * size_t((2 * kConvChunk + 2 * conv.width + 8) * V));
  T *x = scratch.take<T>((kConvChunk + before) * V), *out = scratch.take<T>(kConvChunk * V), *taps = scratch.take<T>(conv.width * V);
  for (int64_t index = first; index < last; index++) {
    const ConvItem item = conv_item<T>(conv, index);
    load_taps<T>(taps, conv, item);
    vec<T> bias = {};
    if (conv.bias != nullptr) bias = load_some<T>((const T*)conv.bias + item.channel, item.rows);
    for (int64_t t0 = 0; t0 < conv.length; t0 += kConvChunk) {
      const int64_t steps = conv.length - t0 < kConvChunk ? conv.length - t0 : kConvChunk;
      load_padded<T>(x, conv.x, item.batch, item.channel, item.rows, t0 - before, t0 + steps, conv.length);
      for (int64_t t = 0; t < steps; t++) {
        vec<T> y = window<T, W>(x + t * V, taps, bias, conv.width);
        if (conv.silu) y *= sigmoid<T>(y);
        store<T>(out + t * V, y);
      }
      store_tile<T>(out, V, f.out, item.batch, item.channel, item.rows, t0, steps, kConvChunk);
    }
  }
}

// Each chunk works out anew the gradients before the activation of the W - 1 steps that follow it.
template <class T, int W>
static void conv_backward_width(const ConvBackward& f, int64_t first, int64_t last) {
  constexpr int V = kLanes<T>;
  const Conv& conv = f.conv;
  const int64_t around = conv.width - 1, taps_count = W > 0 ? W : conv.width;
  [[maybe_unused]] FlushDenormals flush;
  Scratch scratch(sizeof(T) * size_t((3 * kConvChunk + 5 * conv.width + 16) * V));
  T* x = scratch.take<T>((kConvChunk + 2 * around) * V);
  T* g = scratch.take<T>((kConvChunk + around) * V);
  T *gx = scratch.take<T>(kConvChunk * V), *taps = scratch.take<T>(conv.width * V), *sums = scratch.take<T>(conv.width * V);
  for (int64_t index = first; index < last; index++) {
    const ConvItem item = conv_item<T>(conv, index);
    load_taps<T>(taps, conv, item);
    vec<T> bias = {}, sum_bias = {};
    if (conv.bias != nullptr) bias = load_some<T>((const T*)conv.bias + item.channel, item.rows);
    for (int64_t k = 0; k < conv.width; k++) store<T>(sums + k * V, vec<T>{});
    for (int64_t t0 = 0; t0 < conv.length; t0 += kConvChunk) {
      const int64_t steps = conv.length - t0 < kConvChunk ? conv.length - t0 : kConvChunk;
      load_padded<T>(x, conv.x, item.batch, item.channel, item.rows, t0 - around, t0 + steps + around, conv.length);
      load_padded<T>(g, f.grad_out, item.batch, item.channel, item.rows, t0, t0 + steps + around, conv.length);
      if (conv.silu) {
        for (int64_t t = 0; t < steps + around; t++) {
          const vec<T> y = window<T, W>(x + t * V, taps, bias, conv.width), s = sigmoid<T>(y);
          store<T>(g + t * V, load(g + t * V) * (s + y * s * (T(1) - s)));
        }
      }
      vec<T> chunk_bias = {};
      for (int64_t t = 0; t < steps; t++) {
        vec<T> sum = {};
        for (int64_t k = 0; k < taps_count; k++) sum += load(taps + k * V) * load(g + (t + around - k) * V);
        store<T>(gx + t * V, sum);
        chunk_bias += load(g + t * V);
      }
      sum_bias += chunk_bias;
      for (int64_t k = 0; k < taps_count; k++) {
        vec<T> sum = {};
        for (int64_t t = 0; t < steps; t++) sum += load(g + t * V) * load(x + (t + k) * V);
        store<T>(sums + k * V, load(sums + k * V) + sum);
      }
      store_tile<T>(gx, V, f.grad_x, item.batch, item.channel, item.rows, t0, steps, kConvChunk);
    }
    T* to = (T*)f.grad_weight + (item.batch * conv.channels + item.channel) * conv.width;
    for (int64_t k = 0; k < conv.width; k++) scatter<T>(to + k, conv.width, load(sums + k * V), item.rows);
    store_some<T>((T*)f.grad_bias + item.batch * conv.channels + item.channel, sum_bias, item.rows);
  }
}

template <class T>
static void conv_forward(const ConvForward& f, int64_t first, int64_t last) {
  switch (f.conv.width) {
    case 2: return conv_forward_width<T, 2>(f, first, last);
    case 3: return conv_forward_width<T, 3>(f, first, last);
    case 4: return conv_forward_width<T, 4>(f, first, last);
    default: return conv_forward_width<T, 0>(f, first, last);
  }
}
template <class T>
static void conv_backward(const ConvBackward& f, int64_t first, int64_t last) {
  switch (f.conv.width) {
    case 2: return conv_backward_width<T, 2>(f, first, last);
    case 3: return conv_backward_width<T, 3>(f, first, last);
    case 4: return conv_backward_width<T, 4>(f, first, last);
    default: return conv_backward_width<T, 0>(f, first, last);
  }
}

}  // namespace VM_ISA
}  // namespace vision_mamba
