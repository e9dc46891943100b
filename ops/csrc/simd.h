// Vectors of VM_BYTES bytes in the compiler's own vector syntax, with the few functions the kernels need.
//
// Included once by each of the kernel units, which are compiled for different instruction sets; everything lives in
// a namespace of that instruction set, and no library templates are used, lest the linker keep one unit's copy for all.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define VM_INLINE static inline __attribute__((always_inline))

namespace vision_mamba {
namespace VM_ISA {

template <class T>
struct Vec;
template <>
struct Vec<float> {
  typedef float type __attribute__((vector_size(VM_BYTES)));
  typedef float loose __attribute__((vector_size(VM_BYTES), aligned(4), may_alias));
  typedef int32_t bits __attribute__((vector_size(VM_BYTES)));
  static constexpr int lanes = VM_BYTES / 4;
};
template <>
struct Vec<double> {
  typedef double type __attribute__((vector_size(VM_BYTES)));
  typedef double loose __attribute__((vector_size(VM_BYTES), aligned(8), may_alias));
  typedef int64_t bits __attribute__((vector_size(VM_BYTES)));
  static constexpr int lanes = VM_BYTES / 8;
};
template <class T>
using vec = typename Vec<T>::type;
template <class T>
static constexpr int kLanes = Vec<T>::lanes;

template <class T>
VM_INLINE vec<T> load(const T* p) {
  return *(const typename Vec<T>::loose*)p;
}
template <class T>
VM_INLINE void store(T* p, vec<T> v) {
  *(typename Vec<T>::loose*)p = v;
}
template <class T>
VM_INLINE vec<T> splat(T x) {
  return x - vec<T>{};
}
// The first `count` lanes from memory, the others zero.
template <class T>
VM_INLINE vec<T> load_some(const T* p, int count) {
  if (count == kLanes<T>) return load(p);
#if VM_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return _mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
  } else {
    return _mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), p);
  }
#else
  vec<T> v = {};
  for (int i = 0; i < count; i++) v[i] = p[i];
  return v;
#endif
}
template <class T>
VM_INLINE void store_some(T* p, vec<T> v, int count) {
  if (count == kLanes<T>) return store(p, v);
#if VM_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), v);
  } else {
    _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1), v);
  }
#else
  for (int i = 0; i < count; i++) p[i] = v[i];
#endif
}
// Lanes of `step` apart, starting anywhere: A is (D, N) and a vector holds one state of neighbouring channels.
template <class T>
VM_INLINE vec<T> gather(const T* p, int64_t step, int count) {
  vec<T> v = {};
  for (int i = 0; i < count; i++) v[i] = p[i * step];
  return v;
}
template <class T>
VM_INLINE void scatter(T* p, int64_t step, vec<T> v, int count) {
  for (int i = 0; i < count; i++) p[i * step] = v[i];
}

// 2^x. Rounding x to the nearest integer and a polynomial with constant term exactly 1 keep decays near 1 unbiased: over a
// long sequence a bias of half a unit in the last place would add up. Zero where the result is below the normal range.
VM_INLINE vec<float> exp2_poly(vec<float> r) {
  // minimax on [-1/2, 1/2], relative error 1.1e-7 with these rounded coefficients
  vec<float> p = 1.3264739e-3f * r + 9.6715167e-3f;
  p = p * r + 5.5507336e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.9314700e-1f;
  return p * r + 1.0f;
}
VM_INLINE vec<double> exp2_poly(vec<double> r) {
  // the Taylor series: at degree 13 its error on [-1/2, 1/2] is below the rounding of a double
  vec<double> p = 1.3691488853904128e-12 * r + 2.5678435993488206e-11;
  p = p * r + 4.4455382718708116e-10;
  p = p * r + 7.054911620801123e-09;
  p = p * r + 1.01780860092397e-07;
  p = p * r + 1.321548679014431e-06;
  p = p * r + 1.5252733804059841e-05;
  p = p * r + 0.0001540353039338161;
  p = p * r + 0.0013333558146428443;
  p = p * r + 0.009618129107628477;
  p = p * r + 0.05550410866482158;
  p = p * r + 0.24022650695910072;
  p = p * r + 0.6931471805599453;
  return p * r + 1.0;
}

#if VM_BYTES == 64
VM_INLINE vec<float> exp2v(vec<float> x) {
  vec<float> k = _mm512_roundscale_ps(x, 8);  // nearest, exceptions suppressed
  return _mm512_scalef_ps(exp2_poly(vec<float>(x - k)), k);
}
VM_INLINE vec<double> exp2v(vec<double> x) {
  vec<double> k = _mm512_roundscale_pd(x, 8);
  return _mm512_scalef_pd(exp2_poly(vec<double>(x - k)), k);
}
#else
VM_INLINE vec<float> exp2v(vec<float> x) {
  typedef Vec<float>::bits bits;
  const float magic = 12582912.0f + 127.0f;  // 1.5 * 2^23 rounds to integers; 127 is the exponent's bias
  x = x < -127.0f ? splat(-127.0f) : x;      // 2^-127 becomes the bit pattern of zero; a NaN passes
  x = x > 128.0f ? splat(128.0f) : x;        // 2^128 becomes that of infinity
  vec<float> t = x + magic;
  vec<float> scale = (vec<float>)((bits)t << 23);
  return exp2_poly(x - (t - magic)) * scale;
}
VM_INLINE vec<double> exp2v(vec<double> x) {
  typedef Vec<double>::bits bits;
  const double magic = 6755399441055744.0 + 1023.0;
  x = x < -1023.0 ? splat(-1023.0) : x;
  x = x > 1024.0 ? splat(1024.0) : x;
  vec<double> t = x + magic;
  vec<double> scale = (vec<double>)((bits)t << 52);
  return exp2_poly(x - (t - magic)) * scale;
}
#endif

// 2^(d a), for |d a| up to kDecayRange. Where products are fused, rounding by a large constant takes one operation less than above, and the lowest
// bits of the rounded number choose a factor from a register, which leaves a shorter polynomial.
template <class T>
static constexpr T kDecayRange = T(1e14);  // beyond, the unrounded rest could overflow the polynomial
#if VM_BYTES == 64
alignas(64) static const float kSixteenths[16] = {  // 2^(i / 16)
    1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f, 1.29683955f, 1.35425555f,
    1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f, 1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
VM_INLINE vec<float> decay_of(vec<float> d, vec<float> a) {
  const float magic = 786432.0f;  // 1.5 * 2^19: its last bit stands for a sixteenth
  const vec<float> rounded = d * a + magic, k = rounded - magic;
  const vec<float> r = d * a - k;
  const vec<float> factor = _mm512_permutexvar_ps((__m512i)rounded, load(kSixteenths));
  // minimax on [-1/32, 1/32] with constant term 1, as in exp2_poly
  vec<float> p = 0.0555057377f * r + 0.24023433f;
  p = p * r + 0.693147182f;
  return _mm512_scalef_ps(p * (r * factor) + factor, k);  // scales by the whole part of k
}
VM_INLINE vec<double> decay_of(vec<double> d, vec<double> a) {
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  const vec<double> k = (d * a + magic) - magic;
  return _mm512_scalef_pd(exp2_poly(vec<double>(d * a - k)), k);
}
#else
template <class V>
VM_INLINE V decay_of(V d, V a) {
  return exp2v(V(d * a));
}
#endif

template <class T>
static constexpr T kLog2e = T(1.4426950408889634074);
template <class T>
static constexpr T kLn2 = T(0.69314718055994530942);

template <class T>
VM_INLINE vec<T> expv(vec<T> x) {
  return exp2v(vec<T>(x * kLog2e<T>));
}

// log(1 + y) for y in [0, 1], with small relative error for small y.
VM_INLINE vec<float> log1p_unit(vec<float> y) {
  vec<float> p = -3.2438740e-3f * y + 1.9850759e-2f;
  p = p * y - 5.6958150e-2f;
  p = p * y + 1.0603505e-1f;
  p = p * y - 1.5305497e-1f;
  p = p * y + 1.9675903e-1f;
  p = p * y - 2.4954125e-1f;
  p = p * y + 3.3329961e-1f;
  p = p * y - 4.9999902e-1f;
  return (p * y + 1.0f) * y;
}
VM_INLINE vec<double> log1p_unit(vec<double> y) {
  static constexpr double c[] = {
      -0.00013220752171300756, 0.0007911120943342025, -0.003012725190994973, 0.008247545287913185, -0.017430328291517153,
      0.02993721073850981,     -0.043640878141211176, 0.05623635295479162,   -0.06660470528013887, 0.07507792401956033,
      -0.082755864841595,      0.09076296534777899,   -0.09997052287665967,  0.11110645369441435,  -0.12499943655343673,
      0.1428570922064608,      -0.16666666341888503,  0.19999999985984313,   -0.24999999999627157, 0.3333333333332805,
      -0.4999999999999997,     1.0};
  vec<double> p = splat(1.05231354812717e-05);
  for (double k : c) p = p * y + k;
  return p * y;
}

template <class T>
VM_INLINE vec<T> absv(vec<T> x) {
  typedef typename Vec<T>::bits bits;
  const bits sign = (bits)splat(T(-0.0));
  return (vec<T>)((bits)x & ~sign);
}

// The smaller and the larger of both; of a NaN in `a`, `b`; a NaN in `b` passes.
template <class T>
VM_INLINE vec<T> smaller(vec<T> a, vec<T> b) {
#if VM_BYTES == 64  // the compiler finds two operations for these, and no single one
  if constexpr (sizeof(T) == 4) {
    return _mm512_min_ps(a, b);
  } else {
    return _mm512_min_pd(a, b);
  }
#else
  return a < b ? a : b;
#endif
}
template <class T>
VM_INLINE vec<T> larger(vec<T> a, vec<T> b) {
#if VM_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return _mm512_max_ps(a, b);
  } else {
    return _mm512_max_pd(a, b);
  }
#else
  return a > b ? a : b;
#endif
}

// e^-|x|, which softplus and its derivative are made of.
template <class T>
VM_INLINE vec<T> soft_rest(vec<T> x) {
  return expv<T>(-smaller<T>(splat(T(100)), absv<T>(x)));  // infinity too has a rest
}
// softplus with the reference's threshold of 20, above which it is the identity, and its derivative; `e` is the rest of x. In float they are
// so by themselves: e^-20 is lost beside x and beside 1.
template <class T>
VM_INLINE vec<T> softplus(vec<T> x, vec<T> e) {
  const vec<T> smooth = larger<T>(vec<T>{}, x) + log1p_unit(e);
  if constexpr (sizeof(T) == 4) {
    return smooth;
  } else {
    return x > T(20) ? x : smooth;
  }
}
template <class T>
VM_INLINE vec<T> softplus_slope(vec<T> x, vec<T> e) {
  const vec<T> one = splat(T(1)), slope = (x < T(0) ? e : one) / (one + e);
  if constexpr (sizeof(T) == 4) {
    return slope;
  } else {
    return x > T(20) ? one : slope;
  }
}
// 1 / (1 + exp(-x))
template <class T>
VM_INLINE vec<T> sigmoid(vec<T> x) {
  vec<T> e = expv<T>(-absv<T>(x));
  vec<T> one = splat(T(1));
  vec<T> top = x < T(0) ? e : one;
  return top / (one + e);
}

// One step of a butterfly on the vectors a and b: lanes whose number has bit S clear keep a's, the others take b's (`low`), or the lanes S
// further on (`high`). log2(lanes) steps transpose a square; adding low and high instead sums each vector into a lane of its own.
template <int... I>
struct Indices {};
template <class T, int S, int... I>
VM_INLINE vec<T> butterfly_low(vec<T> a, vec<T> b, Indices<I...>) {
  return __builtin_shufflevector(a, b, ((I & S) ? int(sizeof...(I)) + I - S : I)...);
}
template <class T, int S, int... I>
VM_INLINE vec<T> butterfly_high(vec<T> a, vec<T> b, Indices<I...>) {
  return __builtin_shufflevector(a, b, ((I & S) ? int(sizeof...(I)) + I : I + S)...);
}
template <int N>
struct LaneList;
template <>
struct LaneList<2> {
  typedef Indices<0, 1> list;
};
template <>
struct LaneList<4> {
  typedef Indices<0, 1, 2, 3> list;
};
template <>
struct LaneList<8> {
  typedef Indices<0, 1, 2, 3, 4, 5, 6, 7> list;
};
template <>
struct LaneList<16> {
  typedef Indices<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15> list;
};

template <class T, int S>
struct Butterfly {
  typedef typename LaneList<kLanes<T>>::list lanes;
  VM_INLINE void transpose(vec<T>* v) {
    for (int i = 0; i < kLanes<T>; i++) {
      if (i & S) continue;
      vec<T> low = butterfly_low<T, S>(v[i], v[i + S], lanes());
      v[i + S] = butterfly_high<T, S>(v[i], v[i + S], lanes());
      v[i] = low;
    }
    Butterfly<T, S / 2>::transpose(v);
  }
  VM_INLINE vec<T> sums(vec<T>* v) {
    for (int i = 0; i < S; i++) {
      v[i] = butterfly_low<T, S>(v[i], v[i + S], lanes()) + butterfly_high<T, S>(v[i], v[i + S], lanes());
    }
    return Butterfly<T, S / 2>::sums(v);
  }
};
template <class T>
struct Butterfly<T, 0> {
  VM_INLINE void transpose(vec<T>*) {}
  VM_INLINE vec<T> sums(vec<T>* v) { return v[0]; }
};
// v[i][j] <-> v[j][i]
template <class T>
VM_INLINE void transpose(vec<T>* v) {
  Butterfly<T, kLanes<T> / 2>::transpose(v);
}
// Lane i of the result is the sum over the lanes of v[i].
template <class T>
VM_INLINE vec<T> sums(vec<T>* v) {
  return Butterfly<T, kLanes<T> / 2>::sums(v);
}

// Decaying states pass through the denormal range, where arithmetic can be a hundred times slower; they count as zero instead.
struct FlushDenormals {
#if defined(__x86_64__)
  unsigned before = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

}  // namespace VM_ISA
}  // namespace vision_mamba
