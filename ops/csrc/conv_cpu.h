// causal_conv1d on the CPU.
#pragma once
#include <tuple>

#include "torch_side.h"

namespace vision_mamba {

struct PreparedConv {
  Conv conv;
  Tensor weight, bias;
};

inline at::ScalarType conv_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

inline PreparedConv prepare(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool silu) {
  PreparedConv p;
  p.weight = small(weight, conv_type(x)), p.bias = small(bias, conv_type(x));
  p.conv = {x.size(0), x.size(1), x.size(2), weight.size(1), sequence(x), data(p.weight), data(p.bias), silu};
  return p;
}

inline int64_t conv_items(const Conv& c, const Kernels& k) { return c.batch * ((c.channels + k.lanes - 1) / k.lanes); }

inline Tensor conv_forward_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                               std::optional<c10::string_view> activation) {
  PreparedConv p = prepare(x, weight, bias, check_conv(x, weight, bias, activation));
  const Kernels& k = kernels(conv_type(x));
  Tensor out = at::empty_like(x);
  const ConvForward f{p.conv, sequence(out)};
  over_items(conv_items(p.conv, k), p.conv.length * k.lanes, [&](int64_t first, int64_t last) { k.conv_forward(f, first, last); });
  return out;
}

inline std::tuple<Tensor, Tensor, Tensor> conv_backward_cpu(const Tensor& grad_out, const Tensor& x, const Tensor& weight,
                                                            const OptionalTensor& bias, std::optional<c10::string_view> activation) {
  PreparedConv p = prepare(x, weight, bias, check_conv(x, weight, bias, activation));
  const Check check{"causal_conv1d_backward", x, "x"};
  check.floating("grad_out", grad_out);
  check.shape("grad_out", grad_out, x.sizes());
  const Conv& c = p.conv;
  const Kernels& k = kernels(conv_type(x));
  const auto options = x.options().dtype(conv_type(x));
  Tensor grad_x = at::empty_like(x);
  Tensor parts_weight = at::empty({c.batch, c.channels, c.width}, options), parts_bias = at::empty({c.batch, c.channels}, options);
  const ConvBackward f{c, sequence(grad_out), sequence(grad_x), parts_weight.data_ptr(), parts_bias.data_ptr()};
  over_items(conv_items(c, k), 3 * c.length * k.lanes, [&](int64_t first, int64_t last) { k.conv_backward(f, first, last); });
  return {grad_x, sum_batch(parts_weight).to(weight.scalar_type()),
          given(bias) ? sum_batch(parts_bias).to(bias->scalar_type()) : at::empty({0}, options)};
}

}  // namespace vision_mamba
