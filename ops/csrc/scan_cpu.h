// selective_scan on the CPU: allocates, fills in the kernels' structs, hands tasks to threads.
#pragma once
#include <numeric>
#include <tuple>

#include "torch_side.h"

namespace vision_mamba {

// The arguments in the kernels' form, and the converted copies that it points into.
struct PreparedScan {
  Scan scan;
  Tensor a, b, c, d, delta_bias;
};

inline int64_t weight_groups(const Tensor& t) { return t.dim() == 4 ? t.size(1) : 1; }

inline Weights weights(const Tensor& t, Tensor& copy, at::ScalarType type) {
  Weights w{};
  w.groups = weight_groups(t);
  if (t.dim() == 2) {
    copy = small(t, type);
    w.constant = copy.data_ptr();
  } else {
    w.sequence = sequence(t, t.dim() - 2);
    w.group_stride = t.dim() == 4 ? t.stride(1) : 0;
  }
  return w;
}

inline PreparedScan prepare(const ScanArguments& in) {
  const auto type = in.computing_type();
  PreparedScan p;
  Scan& s = p.scan;
  s.batch = in.u.size(0), s.channels = in.u.size(1), s.length = in.u.size(2), s.states = in.a.size(1);
  // A block of channels must lie in one group of B and in one of C.
  const int64_t groups = std::lcm(weight_groups(in.b), weight_groups(in.c));
  s.cut = kernels(type).partition(s.batch, s.channels, s.length, s.states, groups, 16);
  s.u = sequence(in.u), s.delta = sequence(in.delta), s.z = sequence(in.z);
  s.b = weights(in.b, p.b, type), s.c = weights(in.c, p.c, type);
  p.a = small(in.a, type), p.d = small(in.d, type), p.delta_bias = small(in.delta_bias, type);
  s.a = data(p.a), s.d = data(p.d), s.delta_bias = data(p.delta_bias);
  s.softplus = in.softplus;
  return p;
}

inline int64_t task_count(const Scan& s) { return s.batch * s.cut.groups * s.cut.tasks_per_group; }
inline int64_t task_work(const Scan& s) { return s.length * s.states * s.cut.group_channels / s.cut.tasks_per_group; }

inline c10::SymInt checkpoint_count(const c10::SymInt& length) {
  const int64_t chunk = instruction_set().f32.chunk_steps;
  return (length + (chunk - 1)) / chunk;
}

// out, last_state and, if asked for, the states that the backward pass starts from.
inline std::tuple<Tensor, Tensor, Tensor> scan_forward_cpu(const ScanArguments& in, bool with_checkpoints) {
  check_scan(in);
  PreparedScan p = prepare(in);
  const Scan& s = p.scan;
  const auto options = in.u.options().dtype(in.computing_type());
  Tensor out = at::empty_like(in.u);
  Tensor last_state = at::empty({s.batch, s.channels, s.states}, options);
  Tensor checkpoints;
  if (with_checkpoints) checkpoints = at::empty({s.batch, s.cut.chunks, s.states, s.channels}, options);
  const ScanForward f{s, sequence(out), last_state.data_ptr(), data(checkpoints)};
  over_items(task_count(s), task_work(s), [&](int64_t first, int64_t last) {
    kernels(in.computing_type()).scan_forward(f, first, last);
  });
  return {out, last_state, checkpoints};
}

using ScanGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The gradient of B or C: the tasks' shares added up where it varies, the batch entries' where it is constant.
inline Tensor finish_weights(const Scan& s, const Tensor& like, const Tensor& parts) {
  if (like.dim() == 2) return sum_batch(parts).to(like.scalar_type());
  Tensor gradient = at::empty_like(like);
  Tensor unused;
  const Weights w = weights(gradient, unused, parts.scalar_type());
  const int64_t items = s.batch * w.groups * s.cut.chunks;
  const int64_t work = s.cut.partial_size / s.cut.chunks * s.cut.groups / w.groups * s.cut.tasks_per_group;
  over_items(items, work, [&](int64_t first, int64_t last) {
    kernels(parts.scalar_type()).merge_weights(s, w, parts.data_ptr(), first, last);
  });
  return gradient;
}

inline ScanGradients scan_backward_cpu(const OptionalTensor& grad_out, const OptionalTensor& grad_last_state, const ScanArguments& in,
                                       const Tensor& checkpoints) {
  check_scan(in);
  const Check check{"selective_scan_backward", in.u, "u"};
  const auto type = in.computing_type();
  PreparedScan p = prepare(in);
  const Scan& s = p.scan;
  const auto options = in.u.options().dtype(type);
  if (given(grad_out)) check.floating("grad_out", *grad_out), check.shape("grad_out", *grad_out, in.u.sizes());
  if (given(grad_last_state)) check.shape("grad_last_state", *grad_last_state, {s.batch, s.channels, s.states});
  check.shape("checkpoints", checkpoints, {s.batch, s.cut.chunks, s.states, s.channels});
  if (checkpoints.scalar_type() != type || !checkpoints.is_contiguous()) {
    check.fail("checkpoints has dtype ", checkpoints.scalar_type(), ", expected contiguous ", type, " as made by selective_scan_forward");
  }

  const Tensor last = small(grad_last_state, type);
  Tensor grad_u = at::empty_like(in.u), grad_delta = at::empty_like(in.delta), none = at::empty({0}, options);
  Tensor grad_z = given(in.z) ? at::empty_like(*in.z) : none;
  Tensor parts_a = at::empty({s.batch, s.channels, s.states}, options);
  Tensor parts_d = at::empty({s.batch, s.channels}, options), parts_bias = at::empty({s.batch, s.channels}, options);
  auto weight_parts = [&](const Tensor& t) {
    return t.dim() == 2 ? at::empty({s.batch, s.channels, s.states}, options) : at::empty({task_count(s), s.cut.partial_size}, options);
  };
  Tensor parts_b = weight_parts(in.b), parts_c = weight_parts(in.c);
  const bool constant_b = in.b.dim() == 2, constant_c = in.c.dim() == 2;

  ScanBackward f{};
  f.scan = s;
  f.grad_out = sequence(grad_out);
  f.grad_last_state = data(last);
  f.checkpoints = checkpoints.data_ptr();
  f.grad_u = sequence(grad_u), f.grad_delta = sequence(grad_delta);
  if (given(in.z)) f.grad_z = sequence(grad_z);
  f.grad_a = parts_a.data_ptr(), f.grad_d = parts_d.data_ptr(), f.grad_delta_bias = parts_bias.data_ptr();
  (constant_b ? f.grad_b_constant : f.partial_b) = parts_b.data_ptr();
  (constant_c ? f.grad_c_constant : f.partial_c) = parts_c.data_ptr();
  over_items(task_count(s), 3 * task_work(s), [&](int64_t first, int64_t last) { kernels(type).scan_backward(f, first, last); });

  return {grad_u,
          grad_delta,
          sum_batch(parts_a).to(in.a.scalar_type()),
          finish_weights(s, in.b, parts_b),
          finish_weights(s, in.c, parts_c),
          given(in.d) ? sum_batch(parts_d).to(in.d->scalar_type()) : none,
          grad_z,
          given(in.delta_bias) ? sum_batch(parts_bias).to(in.delta_bias->scalar_type()) : none};
}

}  // namespace vision_mamba
