// Argument checks, the same for every implementation. Each complaint names the operator, the argument, what came and what was expected.
#pragma once
#include <ATen/ATen.h>

#include <optional>
#include <string>

namespace vision_mamba {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline bool given(const OptionalTensor& t) { return t.has_value() && t->defined(); }

struct Check {
  const char* op;
  const Tensor& first;      // every other argument must be where this one is
  const char* first_name;

  template <class... Args>
  [[noreturn]] void fail(const Args&... args) const {
    TORCH_CHECK(false, "vision_mamba::", op, ": ", args...);
  }
  void device(const char* name, const Tensor& t) const {
    if (t.device() != first.device()) fail(name, " is on ", t.device(), ", expected ", first.device(), " like ", first_name);
  }
  void strided(const char* name, const Tensor& t) const {
    if (t.layout() != at::kStrided) fail(name, " has layout ", t.layout(), ", expected a dense tensor");
  }
  // float32, bfloat16 or float16; float64 only together with a float64 first argument, which decides the computing type.
  void floating(const char* name, const Tensor& t) const {
    const auto type = t.scalar_type();
    strided(name, t);
    device(name, t);
    if (type == at::kFloat || type == at::kBFloat16 || type == at::kHalf) return;
    if (type == at::kDouble) {
      if (first.scalar_type() == at::kDouble) return;
      fail(name, " has dtype ", type, ", expected at most float32 like ", first_name, ", which has dtype ", first.scalar_type());
    }
    fail(name, " has dtype ", type, ", expected float32, float64, bfloat16 or float16");
  }
  // float32, or float64 together with a float64 first argument.
  void full(const char* name, const Tensor& t) const {
    const auto type = t.scalar_type();
    strided(name, t);
    device(name, t);
    if (type == at::kFloat || (type == at::kDouble && first.scalar_type() == at::kDouble)) return;
    fail(name, " has dtype ", type, ", expected float32", first.scalar_type() == at::kDouble ? " or float64" : "");
  }
  void shape(const char* name, const Tensor& t, at::IntArrayRef expected) const {
    if (t.sizes() != expected) fail(name, " has shape ", t.sizes(), ", expected ", expected);
  }
};

inline bool symbolic(const Tensor& t) { return t.unsafeGetTensorImpl()->has_symbolic_sizes_strides(); }

struct ScanArguments {
  const Tensor &u, &delta, &a, &b, &c;
  const OptionalTensor &d, &z, &delta_bias;
  bool softplus;

  at::ScalarType computing_type() const { return u.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }
};

inline void check_scan_weights(const Check& check, const char* name, const Tensor& t, const Tensor& u, int64_t states) {
  check.floating(name, t);
  const int64_t batch = u.size(0), channels = u.size(1), length = u.size(2);
  const auto s = t.sizes();
  const bool constant = s.size() == 2 && s[0] == channels && s[1] == states;
  const bool plain = s.size() == 3 && s[0] == batch && s[1] == states && s[2] == length;
  const bool grouped = s.size() == 4 && s[0] == batch && s[1] >= 1 && channels % s[1] == 0 && s[2] == states && s[3] == length;
  if (constant || plain || grouped) return;
  check.fail(name, " has shape ", s, ", expected (", batch, ", ", states, ", ", length, "), (", batch, ", G, ", states, ", ", length,
             ") with G dividing ", channels, ", or (", channels, ", ", states, ")");
}

inline void check_scan(const ScanArguments& in) {
  const Check check{"selective_scan", in.u, "u"};
  check.floating("u", in.u);
  if (symbolic(in.u) || symbolic(in.a) || symbolic(in.b)) return;  // tracing with sizes left open
  if (in.u.dim() != 3) check.fail("u has shape ", in.u.sizes(), ", expected three dimensions (B, D, L)");
  if (in.u.size(1) < 1 || in.u.size(2) < 1) check.fail("u has shape ", in.u.sizes(), ", expected D and L of at least 1");
  const int64_t channels = in.u.size(1);
  check.floating("delta", in.delta);
  check.shape("delta", in.delta, in.u.sizes());
  check.full("A", in.a);
  if (in.a.dim() != 2 || in.a.size(0) != channels || in.a.size(1) < 1) {
    check.fail("A has shape ", in.a.sizes(), ", expected (", channels, ", N) with N of at least 1");
  }
  check_scan_weights(check, "B", in.b, in.u, in.a.size(1));
  check_scan_weights(check, "C", in.c, in.u, in.a.size(1));
  if (given(in.d)) check.full("D", *in.d), check.shape("D", *in.d, {channels});
  if (given(in.z)) check.floating("z", *in.z), check.shape("z", *in.z, in.u.sizes());
  if (given(in.delta_bias)) check.full("delta_bias", *in.delta_bias), check.shape("delta_bias", *in.delta_bias, {channels});
}

struct CrossArguments {
  const Tensor &u, &weights, &dt_weight, &a;
  const OptionalTensor &d, &delta_bias;
  const Tensor& orders;
  bool softplus;

  at::ScalarType computing_type() const { return u.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }
  bool shared() const { return u.dim() == 3; }  // whether the directions have the same tokens
};

inline void check_cross(const CrossArguments& in) {
  const Check check{"cross_selective_scan", in.u, "u"};
  check.floating("u", in.u);
  if (symbolic(in.u) || symbolic(in.weights) || symbolic(in.orders)) return;  // tracing with sizes left open
  if (in.orders.dim() != 2 || in.orders.size(0) < 1 || in.orders.scalar_type() != at::kInt) {
    check.fail("orders has shape ", in.orders.sizes(), " and dtype ", in.orders.scalar_type(), ", expected (K, L) of int32");
  }
  const int64_t directions = in.orders.size(0), length = in.orders.size(1);
  const bool plain = in.u.dim() == 3, own = in.u.dim() == 4 && in.u.size(1) == directions;
  if (!(plain || own) || in.u.size(-2) != length || length < 1 || in.u.size(-1) < 1) {
    check.fail("u has shape ", in.u.sizes(), ", expected (B, ", length, ", D) or (B, ", directions, ", ", length, ", D) for orders of shape ",
               in.orders.sizes());
  }
  const int64_t batch = in.u.size(0), channels = in.u.size(-1);
  check.full("A", in.a);
  if (in.a.dim() != 3 || in.a.size(0) != directions || in.a.size(1) != channels || in.a.size(2) < 1) {
    check.fail("A has shape ", in.a.sizes(), ", expected (", directions, ", ", channels, ", N) with N of at least 1");
  }
  check.floating("dt_weight", in.dt_weight);
  if (in.dt_weight.dim() != 3 || in.dt_weight.size(0) != directions || in.dt_weight.size(1) != channels || in.dt_weight.size(2) < 1) {
    check.fail("dt_weight has shape ", in.dt_weight.sizes(), ", expected (", directions, ", ", channels, ", R) with R of at least 1");
  }
  check.floating("weights", in.weights);
  check.shape("weights", in.weights, {batch, length, directions, in.dt_weight.size(2) + 2 * in.a.size(2)});
  if (given(in.d)) check.full("D", *in.d), check.shape("D", *in.d, {directions, channels});
  if (given(in.delta_bias)) check.full("delta_bias", *in.delta_bias), check.shape("delta_bias", *in.delta_bias, {directions, channels});
  check.device("orders", in.orders);
}

// Whether the activation is SiLU; complains of any but the known names.
inline bool check_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const std::optional<c10::string_view>& activation) {
  const Check check{"causal_conv1d", x, "x"};
  check.floating("x", x);
  const bool silu = activation.has_value() && (*activation == "silu" || *activation == "swish");
  if (activation.has_value() && !silu) {
    check.fail("activation is \"", std::string(*activation), "\", expected None, \"silu\" or \"swish\"");
  }
  if (symbolic(x) || symbolic(weight)) return silu;
  if (x.dim() != 3) check.fail("x has shape ", x.sizes(), ", expected three dimensions (B, D, L)");
  if (x.size(1) < 1 || x.size(2) < 1) check.fail("x has shape ", x.sizes(), ", expected D and L of at least 1");
  check.floating("weight", weight);
  if (weight.dim() != 2 || weight.size(0) != x.size(1) || weight.size(1) < 1) {
    check.fail("weight has shape ", weight.sizes(), ", expected (", x.size(1), ", W) with W of at least 1");
  }
  if (given(bias)) check.floating("bias", *bias), check.shape("bias", *bias, {x.size(1)});
  return silu;
}

}  // namespace vision_mamba
