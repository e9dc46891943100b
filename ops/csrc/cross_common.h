// What the forward and the backward pass over several directions share. A task takes blocks of channels of one batch entry through all
// directions, so that their columns of the map stay in the second-level cache. A step's weights lie in one row of a tile:
//   rank numbers that the step size is made of | states of B | states of C
// Where the kernels work on more states than there are, each part is padded with zeros.
#pragma once
#include "scan_common.h"

namespace vision_mamba {
namespace VM_ISA {

// Rows of dt_weight whose sums are formed together.
static constexpr int kRanks = 8;

template <class T>
struct WeightRow {
  int64_t rank;  // padded number of rows of dt_weight
  int64_t b, c, size;
  bool whole;  // copied as it is
  explicit WeightRow(const Cross& cross) {
    constexpr int V = kLanes<T>;
    const int64_t states = cross.scan.states;
    rank = round_up(cross.rank, kRanks);
    whole = cross.scan.cut.padded_states == states;
    if (whole) {
      b = cross.rank, c = b + states, size = round_up(c + states, V);
    } else {
      b = round_up(cross.rank, V), c = b + round_up(states, V < 4 ? 4 : V), size = 2 * c - b;
    }
  }
  // Elements of a tile; those behind the rank of the last row may be read, and count for nothing.
  int64_t tile() const { return kChunk * size + kRanks; }
};

template <class T, class S>
static void load_weight_rows_as(T* tile, const WeightRow<T>& row, const Cross& cross, const S* p, const int32_t* order, int64_t steps,
                                int64_t ahead) {
  constexpr int V = kLanes<T>;
  const int64_t states = cross.scan.states, all = cross.rank + 2 * states;
  const int64_t parts[3][3] = {{0, 0, cross.rank}, {cross.rank, row.b, states}, {cross.rank + states, row.c, states}};
  for (int64_t t = 0; t < steps; t++) {
    const S* from = p + order[t] * cross.weights.time_stride;
    const char* later = (const char*)(p + order[t + ahead] * cross.weights.time_stride);
    T* to = tile + t * row.size;
    if (row.whole) {
      for (int64_t i = 0; i < all; i += V) {
        __builtin_prefetch(later + i * int64_t(sizeof(S)));
        store<T>(to + i, load_row<T, S>(from + i, all - i < V ? int(all - i) : V));
      }
      continue;
    }
    for (int64_t i = 0; i < all * int64_t(sizeof(S)); i += 64) __builtin_prefetch(later + i);
    for (const auto& [source, target, count] : parts) {
      for (int64_t i = 0; i < count; i += V) {
        store<T>(to + target + i, load_row<T, S>(from + source + i, count - i < V ? int(count - i) : V));
      }
    }
  }
}
// The weights of `steps` steps from `t0`; rows up to `padded_steps` become zero. The tile must have been zero before its first use: only
// numbers that stand for something are written.
template <class T>
static void load_weight_rows(T* tile, const WeightRow<T>& row, const Cross& cross, int64_t batch, int64_t direction, int64_t t0,
                             int64_t steps, int64_t padded_steps, int64_t ahead) {
  const Sequence& w = cross.weights;
  const int64_t offset = batch * w.batch_stride + direction * cross.weights_direction;
  const int32_t* order = cross.orders + direction * cross.scan.length + t0;
  for (int64_t i = steps * row.size; i < padded_steps * row.size; i++) tile[i] = T(0);
  switch (w.type) {
    case Scalar::f32: return load_weight_rows_as<T>(tile, row, cross, (const float*)w.data + offset, order, steps, ahead);
    case Scalar::f64: return load_weight_rows_as<T>(tile, row, cross, (const double*)w.data + offset, order, steps, ahead);
    case Scalar::bf16: return load_weight_rows_as<T>(tile, row, cross, (const BFloat16*)w.data + offset, order, steps, ahead);
    case Scalar::f16: return load_weight_rows_as<T>(tile, row, cross, (const Float16*)w.data + offset, order, steps, ahead);
  }
}

// Where the weights of a chunk's steps are read from: a row for each step, and as many more as `project_steps` reads without need.
template <class T>
struct StepRows {
  const T* at[kChunk + 8];
  // Of a tile.
  StepRows(const T* tile, const WeightRow<T>& row) {
    for (int64_t t = 0; t < kChunk; t++) at[t] = tile + t * row.size;
    for (int64_t t = kChunk; t < kChunk + 8; t++) at[t] = tile;
  }
  // The tokens' own rows, for `steps` steps from `t0`, where they hold numbers of the computing type in the order of the tile's.
  void tokens(const Cross& cross, int64_t batch, int64_t direction, int64_t t0, int64_t steps, int64_t ahead) {
    const T* p = (const T*)cross.weights.data + batch * cross.weights.batch_stride + direction * cross.weights_direction;
    const int32_t* order = cross.orders + direction * cross.scan.length + t0;
    const int64_t bytes = (cross.rank + 2 * cross.scan.states) * int64_t(sizeof(T));
    for (int64_t t = 0; t < steps; t++) {
      const char* later = (const char*)(p + order[t + ahead] * cross.weights.time_stride);
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(later + i);
      at[t] = p + order[t] * cross.weights.time_stride;
    }
    for (int64_t t = steps; t < steps + 8; t++) at[t] = at[0];
  }
};
template <class T>
static constexpr Scalar kScalar = sizeof(T) == 4 ? Scalar::f32 : Scalar::f64;

// tile[t][lane] = the channels of the token that step t comes to. `ahead`: how far to fetch, 0 where there is nothing.
template <class T, class S>
static void load_tokens_as(T* tile, const S* p, int64_t token, const int32_t* order, int rows, int64_t steps, int64_t ahead) {
  for (int64_t t = 0; t < steps; t++) {
    __builtin_prefetch(p + order[t + ahead] * token);
    store<T>(tile + t * kLanes<T>, load_row<T, S>(p + order[t] * token, rows));
  }
}
template <class T>
static void load_tokens(T* tile, const Sequence& s, int64_t offset, const int32_t* order, int rows, int64_t steps, int64_t ahead) {
  const int64_t token = s.time_stride;
  switch (s.type) {
    case Scalar::f32: return load_tokens_as<T>(tile, (const float*)s.data + offset, token, order, rows, steps, ahead);
    case Scalar::f64: return load_tokens_as<T>(tile, (const double*)s.data + offset, token, order, rows, steps, ahead);
    case Scalar::bf16: return load_tokens_as<T>(tile, (const BFloat16*)s.data + offset, token, order, rows, steps, ahead);
    case Scalar::f16: return load_tokens_as<T>(tile, (const Float16*)s.data + offset, token, order, rows, steps, ahead);
  }
}

// Puts a tile in its tokens' places, or adds it to what stands there.
template <class T>
static void store_tokens(const T* tile, T* p, int64_t token, const int32_t* order, int rows, int64_t steps, bool add, int64_t ahead) {
  constexpr int V = kLanes<T>;
  if (add) {
    for (int64_t t = 0; t < steps; t++) {
      __builtin_prefetch(p + order[t + ahead] * token, 1);
      T* to = p + order[t] * token;
      store_some<T>(to, load_some<T>(to, rows) + load(tile + t * V), rows);
    }
  } else {
    for (int64_t t = 0; t < steps; t++) __builtin_prefetch(p + order[t + ahead] * token, 1), store_some<T>(p + order[t] * token, load(tile + t * V), rows);
  }
}

// The block's columns of dt_weight as [rank][lane], padded with zero rows.
template <class T>
static void load_dt_weight(T* out, const WeightRow<T>& row, const Cross& cross, int64_t direction, int64_t channel, int rows) {
  const T* p = (const T*)cross.dt_weight + direction * cross.rank * cross.scan.channels + channel;
  for (int64_t r = 0; r < row.rank; r++) {
    store<T>(out + r * kLanes<T>, r < cross.rank ? load_some<T>(p + r * cross.scan.channels, rows) : vec<T>{});
  }
}

// Step sizes: dt[t] = softplus(bias + sum over r of weights[t][r] dt_weight[r]); `slope`, if given, is the derivative of the softplus.
// Writes whole groups of eight steps.
template <class T>
static void project_steps(T* dt, T* slope, const StepRows<T>& weights, const T* dt_weight, int64_t rank, vec<T> bias, bool soft,
                          int64_t steps) {
  constexpr int V = kLanes<T>;
  constexpr int some = V >= 8 ? 8 : 4;  // a processor with short vectors has few registers
  for (int64_t t = 0; t < steps; t += some) {
    vec<T> sum[some];
    for (int i = 0; i < some; i++) sum[i] = bias;
    const T* const* w = weights.at + t;
    for (int64_t r = 0; r < rank; r++) {
      const vec<T> lanes = load(dt_weight + r * V);
#pragma GCC unroll 8
      for (int i = 0; i < some; i++) sum[i] += lanes * splat(w[i][r]);
    }
    for (int i = 0; i < some; i++) store<T>(dt + (t + i) * V, sum[i]);
  }
  // by itself, so that the numbers of its polynomials stay in registers
  if (soft) soften<T>(dt, slope, steps);
}

}  // namespace VM_ISA
}  // namespace vision_mamba
