// cross_selective_scan on the CPU: allocates, fills in the kernels' structs, hands tasks to threads.
#pragma once
#include <tuple>
#include <vector>

#include "torch_side.h"

namespace vision_mamba {

// The arguments in the kernels' form, and the converted copies that it points into.
struct PreparedCross {
  Cross cross;
  Tensor u, weights, dt_weight, a, d, delta_bias, orders;
};

// Channels must lie next to each other: copies where they do not.
inline Tensor channels_last(const Tensor& t) { return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous(); }

// Every order must be a permutation, or memory could be read or written that is not there.
inline void check_orders(const Check& check, const Tensor& orders) {
  const int64_t length = orders.size(1);
  const int32_t* p = orders.const_data_ptr<int32_t>();
  std::vector<bool> seen(static_cast<size_t>(length));
  for (int64_t k = 0; k < orders.size(0); k++, p += length) {
    std::fill(seen.begin(), seen.end(), false);
    for (int64_t t = 0; t < length; t++) {
      if (p[t] < 0 || p[t] >= length || seen[size_t(p[t])]) {
        check.fail("orders[", k, "][", t, "] is ", p[t], ", expected each of 0 to ", length - 1, " once in every row");
      }
      seen[size_t(p[t])] = true;
    }
  }
}

inline PreparedCross prepare(const CrossArguments& in) {
  const auto type = in.computing_type();
  PreparedCross p;
  Cross& cross = p.cross;
  Scan& s = cross.scan;
  p.orders = in.orders.contiguous();
  check_orders({"cross_selective_scan", in.u, "u"}, p.orders);
  p.u = channels_last(in.u), p.weights = channels_last(in.weights);
  p.a = small(in.a, type), p.d = small(in.d, type), p.delta_bias = small(in.delta_bias, type);
  p.dt_weight = small(in.dt_weight.transpose(1, 2), type);
  cross = {};
  s.batch = in.u.size(0), s.channels = in.u.size(-1), s.length = in.u.size(-2), s.states = in.a.size(2);
  s.cut = kernels(type).partition(s.batch, s.channels, s.length, s.states, 1, 8);
  s.u = {p.u.data_ptr(), scalar(p.u), p.u.stride(0), 1, p.u.stride(-2)};
  s.a = data(p.a), s.d = data(p.d), s.delta_bias = data(p.delta_bias);
  s.softplus = in.softplus;
  cross.directions = in.orders.size(0), cross.rank = in.dt_weight.size(2);
  cross.u_direction = in.shared() ? 0 : p.u.stride(1);
  cross.weights = {p.weights.data_ptr(), scalar(p.weights), p.weights.stride(0), 1, p.weights.stride(1)};
  cross.weights_direction = p.weights.stride(2);
  cross.dt_weight = p.dt_weight.data_ptr();
  cross.orders = p.orders.const_data_ptr<int32_t>();
  return p;
}

inline int64_t cross_tasks(const Cross& c) { return c.scan.batch * c.scan.cut.tasks_per_group; }
inline int64_t cross_work(const Cross& c, int64_t directions) {
  return directions * c.scan.length * (c.scan.states + 2) * c.scan.channels / c.scan.cut.tasks_per_group;
}

// The sum over the directions and, if asked for, the states that the backward pass starts from.
inline std::tuple<Tensor, Tensor> cross_forward_cpu(const CrossArguments& in, bool with_checkpoints) {
  check_cross(in);
  PreparedCross p = prepare(in);
  const Scan& s = p.cross.scan;
  const auto options = in.u.options().dtype(in.computing_type());
  Tensor out = at::empty({s.batch, s.length, s.channels}, options), checkpoints;
  if (with_checkpoints) checkpoints = at::empty({s.batch, p.cross.directions, s.cut.chunks, s.states, s.channels}, options);
  const CrossForward f{p.cross, out.data_ptr(), data(checkpoints)};
  over_items(cross_tasks(p.cross), cross_work(p.cross, p.cross.directions), [&](int64_t first, int64_t last) {
    kernels(in.computing_type()).cross_forward(f, first, last);
  });
  return {out.to(in.u.scalar_type()), checkpoints};
}

using CrossGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline CrossGradients cross_backward_cpu(const Tensor& grad_out, const CrossArguments& in, const Tensor& checkpoints) {
  check_cross(in);
  const Check check{"cross_selective_scan_backward", in.u, "u"};
  const auto type = in.computing_type();
  PreparedCross p = prepare(in);
  const Cross& cross = p.cross;
  const Scan& s = cross.scan;
  const auto options = in.u.options().dtype(type);
  check.floating("grad_out", grad_out);
  check.shape("grad_out", grad_out, {s.batch, s.length, s.channels});
  check.shape("checkpoints", checkpoints, {s.batch, cross.directions, s.cut.chunks, s.states, s.channels});
  if (checkpoints.scalar_type() != type || !checkpoints.is_contiguous()) {
    check.fail("checkpoints has dtype ", checkpoints.scalar_type(), ", expected contiguous ", type,
               " as made by cross_selective_scan_forward");
  }
  const Tensor dy = channels_last(grad_out);
  Tensor grad_u = at::empty(in.u.sizes(), options), grad_weights = at::empty(in.weights.sizes(), options), none = at::empty({0}, options);
  auto parts = [&](at::IntArrayRef sizes) {
    std::vector<int64_t> all{s.batch, cross.directions};
    all.insert(all.end(), sizes.begin(), sizes.end());
    return at::empty(all, options);
  };
  Tensor parts_a = parts({s.channels, s.states}), parts_dt = parts({s.channels, cross.rank});
  Tensor parts_d = parts({s.channels}), parts_bias = parts({s.channels});

  // The tasks' shares of the gradient of the weights take this many numbers a token and direction. Few are kept for all directions at
  // once; of many, those of one direction, which takes a pass each over the map.
  const int64_t share = s.cut.tasks_per_group * (2 * s.cut.padded_states + cross.rank);
  const int64_t at_once = share * cross.directions <= 2 * s.channels ? cross.directions : 1;
  Tensor partial_b = at::empty({cross_tasks(cross), at_once, s.cut.partial_size}, options), partial_c = at::empty_like(partial_b);
  Tensor partial_dt = at::empty({cross_tasks(cross), at_once, s.cut.partial_size / s.cut.padded_states, cross.rank}, options);

  CrossBackward f{};
  f.cross = cross;
  f.grad_out = {dy.data_ptr(), scalar(dy), dy.stride(0), 1, dy.stride(1)};
  f.checkpoints = checkpoints.data_ptr();
  f.grad_u = grad_u.data_ptr(), f.grad_weights = grad_weights.data_ptr();
  f.grad_a = parts_a.data_ptr(), f.grad_dt_weight = parts_dt.data_ptr();
  f.grad_d = parts_d.data_ptr(), f.grad_delta_bias = parts_bias.data_ptr();
  f.partial_b = partial_b.data_ptr(), f.partial_c = partial_c.data_ptr(), f.partial_dt = partial_dt.data_ptr();
  for (int64_t direction = 0; direction < cross.directions; direction += at_once) {
    f.first_direction = direction, f.last_direction = direction + at_once;
    over_items(cross_tasks(cross), 3 * cross_work(cross, at_once), [&](int64_t first, int64_t last) {
      kernels(type).cross_backward(f, first, last);
    });
    over_items(s.batch * at_once * s.cut.chunks, 32 * share, [&](int64_t first, int64_t last) { kernels(type).merge_cross(f, first, last); });
  }
  return {grad_u.to(in.u.scalar_type()),
          grad_weights.to(in.weights.scalar_type()),
          sum_batch(parts_dt).to(in.dt_weight.scalar_type()),
          sum_batch(parts_a).to(in.a.scalar_type()),
          given(in.d) ? sum_batch(parts_d).to(in.d->scalar_type()) : none,
          given(in.delta_bias) ? sum_batch(parts_bias).to(in.delta_bias->scalar_type()) : none};
}

}  // namespace vision_mamba
