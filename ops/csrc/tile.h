// Tiles: [step][lane] buffers in the first-level cache, filled from tensors of any strides and element type.
#pragma once
#include "params.h"
#include "simd.h"

namespace vision_mamba {
namespace VM_ISA {

VM_INLINE float bits_to_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
VM_INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

struct BFloat16 {
  uint16_t bits;
  VM_INLINE float widen(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
  VM_INLINE BFloat16 narrow(float x) {
    uint32_t bits = float_to_bits(x);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    bool nan = (bits & 0x7fffffff) > 0x7f800000;
    return {uint16_t(nan ? 0x7fc0 : rounded)};
  }
};
struct Float16 {
  uint16_t bits;
  VM_INLINE float widen(Float16 x) {
    uint32_t sign = uint32_t(x.bits & 0x8000) << 16, body = uint32_t(x.bits & 0x7fff) << 13;
    uint32_t normal = body + ((127 - 15) << 23);
    uint32_t special = body + ((255 - 31) << 23);  // infinity and NaN
    // A small half is its fraction times 2^-24: 2^-14 (1 + fraction) - 2^-14, which never meets a float denormal.
    uint32_t small = float_to_bits(bits_to_float(body + ((127 - 14) << 23)) - bits_to_float((127 - 14) << 23));
    uint32_t exponent = x.bits & 0x7c00;
    uint32_t magnitude = exponent == 0 ? small : exponent == 0x7c00 ? special : normal;
    return bits_to_float(sign | magnitude);
  }
  VM_INLINE Float16 narrow(float x) {
    uint32_t bits = float_to_bits(x), sign = (bits >> 16) & 0x8000, body = bits & 0x7fffffff;
    // Below 2^-14 adding 0.5 rounds to units of 2^-24; above, round the fraction to 10 bits, ties to even.
    uint32_t small = float_to_bits(bits_to_float(body) + 0.5f) - float_to_bits(0.5f);
    uint32_t normal = (body - (uint32_t(127 - 15) << 23) + 0xfff + ((body >> 13) & 1)) >> 13;
    uint32_t magnitude = body > 0x7f800000 ? 0x7e00 : body >= 0x477ff000 ? 0x7c00 : body < 0x38800000 ? small : normal;
    return {uint16_t(sign | magnitude)};
  }
};

template <class T, class S>
VM_INLINE T widen(S x) {
  if constexpr (__is_same(S, float) || __is_same(S, double)) {
    return T(x);
  } else {
    return T(S::widen(x));
  }
}
template <class S, class T>
VM_INLINE S narrow(T x) {
  if constexpr (__is_same(S, float) || __is_same(S, double)) {
    return S(x);
  } else {
    return S::narrow(float(x));
  }
}

template <class T, class S>
VM_INLINE vec<T> load_row(const S* p, int count) {
  if constexpr (__is_same(T, S)) {
    return load_some<T>(p, count);
  } else {
    T row[kLanes<T>] = {};
    if (count == kLanes<T>) {
      for (int i = 0; i < kLanes<T>; i++) row[i] = widen<T, S>(p[i]);
    } else {
      for (int i = 0; i < count; i++) row[i] = widen<T, S>(p[i]);
    }
    return load<T>(row);
  }
}
template <class T, class S>
VM_INLINE void store_row(S* p, vec<T> v, int count) {
  if constexpr (__is_same(T, S)) {
    store_some<T>(p, v, count);
  } else {
    T row[kLanes<T>];
    store<T>(row, v);
    if (count == kLanes<T>) {
      for (int i = 0; i < kLanes<T>; i++) p[i] = narrow<S, T>(row[i]);
    } else {
      for (int i = 0; i < count; i++) p[i] = narrow<S, T>(row[i]);
    }
  }
}

// tile[t * stride + i] = p[i * row + t * time] for i < rows, t < steps; lanes from `rows` up to the vector width become zero.
// What lies `ahead` steps further is fetched meanwhile: tiles are short pieces of many distant rows, which the processor's own prefetchers
// do not foresee.
template <class T, class S>
static void load_tile_as(T* tile, int64_t stride, const S* p, int64_t row, int64_t time, int rows, int64_t steps, int64_t ahead) {
  constexpr int V = kLanes<T>;
  if (row == 1) {
    for (int64_t t = 0; t < steps; t++) {
      __builtin_prefetch((const char*)p + (t + ahead) * time * int64_t(sizeof(S)));
      store<T>(tile + t * stride, load_row<T, S>(p + t * time, rows));
    }
    return;
  }
  int64_t t = 0;
  if (time == 1) {
    for (; t < steps; t += V) {
      const int some = steps - t < V ? int(steps - t) : V;
      vec<T> square[V];
      for (int i = 0; i < rows; i++) __builtin_prefetch((const char*)p + (i * row + t + ahead) * int64_t(sizeof(S)));
      for (int i = 0; i < V; i++) square[i] = i < rows ? load_row<T, S>(p + i * row + t, some) : vec<T>{};
      transpose<T>(square);
      for (int i = 0; i < V; i++) {
        if (i < some) store<T>(tile + (t + i) * stride, square[i]);
      }
    }
    return;
  }
  vec<T> v = {};
  for (; t < steps; t++) {
    // An expanded tensor, such as the gradient of a sum, has the same values at all times.
    if (t == 0 || time != 0) {
      for (int i = 0; i < rows; i++) v[i] = widen<T, S>(p[i * row + t * time]);
    }
    store<T>(tile + t * stride, v);
  }
}
template <class T, class S>
static void store_tile_as(const T* tile, int64_t stride, S* p, int64_t row, int64_t time, int rows, int64_t steps, int64_t ahead) {
  constexpr int V = kLanes<T>;
  if (row == 1) {
    for (int64_t t = 0; t < steps; t++) {
      __builtin_prefetch((const char*)p + (t + ahead) * time * int64_t(sizeof(S)), 1);
      store_row<T, S>(p + t * time, load(tile + t * stride), rows);
    }
    return;
  }
  if (time == 1) {
    for (int64_t t = 0; t < steps; t += V) {
      const int some = steps - t < V ? int(steps - t) : V;
      vec<T> square[V];
      for (int i = 0; i < rows; i++) __builtin_prefetch((const char*)p + (i * row + t + ahead) * int64_t(sizeof(S)), 1);
      for (int i = 0; i < V; i++) square[i] = i < some ? load(tile + (t + i) * stride) : vec<T>{};
      transpose<T>(square);
      for (int i = 0; i < V; i++) {
        if (i < rows) store_row<T, S>(p + i * row + t, square[i], some);
      }
    }
    return;
  }
  for (int64_t t = 0; t < steps; t++) {
    for (int i = 0; i < rows; i++) p[i * row + t * time] = narrow<S, T>(tile[t * stride + i]);
  }
}

// `steps` steps from `t0` of `rows` rows from `row0` of one batch entry. `offset` in elements is added (the group of B or C). The next tile
// will be `ahead` steps away.
template <class T>
static void load_tile(T* tile, int64_t stride, const Sequence& s, int64_t batch, int64_t row0, int rows, int64_t t0,
                      int64_t steps, int64_t ahead, int64_t offset = 0) {
  offset += batch * s.batch_stride + row0 * s.row_stride + t0 * s.time_stride;
  switch (s.type) {
    case Scalar::f32: return load_tile_as<T>(tile, stride, (const float*)s.data + offset, s.row_stride, s.time_stride, rows, steps, ahead);
    case Scalar::f64: return load_tile_as<T>(tile, stride, (const double*)s.data + offset, s.row_stride, s.time_stride, rows, steps, ahead);
    case Scalar::bf16: return load_tile_as<T>(tile, stride, (const BFloat16*)s.data + offset, s.row_stride, s.time_stride, rows, steps, ahead);
    case Scalar::f16: return load_tile_as<T>(tile, stride, (const Float16*)s.data + offset, s.row_stride, s.time_stride, rows, steps, ahead);
  }
}
template <class T>
static void store_tile(const T* tile, int64_t stride, const Sequence& s, int64_t batch, int64_t row0, int rows, int64_t t0,
                       int64_t steps, int64_t ahead, int64_t offset = 0) {
  offset += batch * s.batch_stride + row0 * s.row_stride + t0 * s.time_stride;
  switch (s.type) {
    case Scalar::f32: return store_tile_as<T>(tile, stride, (float*)s.data + offset, s.row_stride, s.time_stride, rows, steps, ahead);
    case Scalar::f64: return store_tile_as<T>(tile, stride, (double*)s.data + offset, s.row_stride, s.time_stride, rows, steps, ahead);
    case Scalar::bf16: return store_tile_as<T>(tile, stride, (BFloat16*)s.data + offset, s.row_stride, s.time_stride, rows, steps, ahead);
    case Scalar::f16: return store_tile_as<T>(tile, stride, (Float16*)s.data + offset, s.row_stride, s.time_stride, rows, steps, ahead);
  }
}

// Scratch memory of a run of tasks, given out in cache-line aligned pieces.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : memory_((char*)__builtin_malloc(bytes + 4096)), used_(0) {
    if (memory_ == nullptr) __builtin_trap();  // a few hundred kilobytes: the process is beyond saving
    used_ = 64 - (uintptr_t)memory_ % 64;
  }
  ~Scratch() { __builtin_free(memory_); }
  Scratch(const Scratch&) = delete;
  template <class T>
  T* take(int64_t count) {
    T* piece = (T*)(memory_ + used_);
    used_ += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }

 private:
  char* memory_;
  size_t used_;
};

}  // namespace VM_ISA
}  // namespace vision_mamba
