// From tensors to the kernels' plain structs, and threads.
#pragma once
#include <ATen/Parallel.h>

#include "checks.h"
#include "params.h"

namespace vision_mamba {

inline const Kernels& kernels(at::ScalarType computing_type) {
  return computing_type == at::kDouble ? instruction_set().f64 : instruction_set().f32;
}

inline Scalar scalar(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble: return Scalar::f64;
    case at::kBFloat16: return Scalar::bf16;
    case at::kHalf: return Scalar::f16;
    default: return Scalar::f32;
  }
}

// A (B, rows, L) tensor; `row_dim` is 2 for grouped weights, whose groups are dimension 1.
inline Sequence sequence(const Tensor& t, int64_t row_dim = 1) {
  return {t.data_ptr(), scalar(t), t.stride(0), t.stride(row_dim), t.stride(row_dim + 1)};
}
inline Sequence sequence(const OptionalTensor& t) { return given(t) ? sequence(*t) : Sequence{nullptr, Scalar::f32, 0, 0, 0}; }

// A small tensor, contiguous in the computing type.
inline Tensor small(const Tensor& t, at::ScalarType type) { return t.to(type).contiguous(); }
inline Tensor small(const OptionalTensor& t, at::ScalarType type) { return given(t) ? small(*t, type) : Tensor(); }
inline void* data(const Tensor& t) { return t.defined() ? t.data_ptr() : nullptr; }

// Runs `body(first, last)` over the items on libtorch's threads; small work stays on this one.
template <class Body>
void over_items(int64_t items, int64_t work_per_item, const Body& body) {
  constexpr int64_t worth_a_thread = 1 << 15;
  const int64_t grain = std::max<int64_t>(1, worth_a_thread / std::max<int64_t>(1, work_per_item));
  at::parallel_for(0, items, grain, body);
}

// Sums (B, ...) over the batch, one entry after the other, whatever the number of threads.
template <class T>
Tensor sum_batch_as(const Tensor& parts) {
  Tensor sum = at::zeros(parts.sizes().slice(1), parts.options());
  const int64_t size = sum.numel();
  const T* from = parts.const_data_ptr<T>();
  T* to = sum.mutable_data_ptr<T>();
  for (int64_t b = 0; b < parts.size(0); b++) {
    for (int64_t i = 0; i < size; i++) to[i] += from[b * size + i];
  }
  return sum;
}
inline Tensor sum_batch(const Tensor& parts) {
  return parts.scalar_type() == at::kDouble ? sum_batch_as<double>(parts) : sum_batch_as<float>(parts);
}

}  // namespace vision_mamba
