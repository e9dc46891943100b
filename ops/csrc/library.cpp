// The operators as libtorch knows them: schemas in one place, implementations for CPU and Meta, and the autograd formulas.
//
// `selective_scan`, `cross_selective_scan` and `causal_conv1d` are for callers. The others are the pieces that the autograd formulas are made of; they are operators too,
// so that compilers which trace through the formulas meet something they know.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
#include <torch/version.h>

#include "conv_cpu.h"
#include "cross_cpu.h"
#include "scan_cpu.h"

namespace vision_mamba {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Activation = std::optional<c10::string_view>;

// ---- schemas -----------------------------------------------------------------------------------------------------------------

TORCH_LIBRARY(vision_mamba, m) {
  m.def(
      "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, "
      "Tensor? delta_bias=None, bool delta_softplus=False) -> (Tensor out, Tensor last_state)");
  // `u` (B, L, D), or (B, K, L, D) where each direction has its own tokens; `weights` (B, L, K, R + 2 N), what each token says of its step
  // size, B and C in each direction; `dt_weight` (K, D, R); A (K, D, N); D and delta_bias (K, D); `orders` (K, L) of int32, the token that each
  // step comes to. The result is (B, L, D), the sum over the directions.
  m.def(
      "cross_selective_scan(Tensor u, Tensor weights, Tensor dt_weight, Tensor A, Tensor? D, Tensor? delta_bias, Tensor orders, "
      "bool delta_softplus=True) -> Tensor");
  m.def(
      "cross_selective_scan_forward(Tensor u, Tensor weights, Tensor dt_weight, Tensor A, Tensor? D, Tensor? delta_bias, Tensor orders, "
      "bool delta_softplus) -> (Tensor out, Tensor checkpoints)");
  m.def(
      "cross_selective_scan_backward(Tensor grad_out, Tensor u, Tensor weights, Tensor dt_weight, Tensor A, Tensor? D, "
      "Tensor? delta_bias, Tensor orders, bool delta_softplus, Tensor checkpoints) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("causal_conv1d(Tensor x, Tensor weight, Tensor? bias=None, str? activation=None) -> Tensor");
  m.def(
      "selective_scan_forward(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
      "bool delta_softplus) -> (Tensor out, Tensor last_state, Tensor checkpoints)");
  m.def(
      "selective_scan_backward(Tensor? grad_out, Tensor? grad_last_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
      "Tensor? D, Tensor? z, Tensor? delta_bias, bool delta_softplus, Tensor checkpoints) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "causal_conv1d_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor? bias, str? activation) -> (Tensor, Tensor, Tensor)");
}

#define VM_SCAN_PARAMETERS                                                                                              \
  const Tensor &u, const Tensor &delta, const Tensor &a, const Tensor &b, const Tensor &c, const OptionalTensor &d,     \
      const OptionalTensor &z, const OptionalTensor &delta_bias, bool softplus
#define VM_SCAN_ARGUMENTS u, delta, a, b, c, d, z, delta_bias, softplus

using ScanSignature = std::tuple<Tensor, Tensor>(VM_SCAN_PARAMETERS);
using ScanForwardSignature = std::tuple<Tensor, Tensor, Tensor>(VM_SCAN_PARAMETERS);
using ScanBackwardSignature = ScanGradients(const OptionalTensor& grad_out, const OptionalTensor& grad_last_state, VM_SCAN_PARAMETERS,
                                            const Tensor& checkpoints);
#define VM_CROSS_PARAMETERS                                                                                           \
  const Tensor &u, const Tensor &weights, const Tensor &dt_weight, const Tensor &a, const OptionalTensor &d,           \
      const OptionalTensor &delta_bias, const Tensor &orders, bool softplus
#define VM_CROSS_ARGUMENTS u, weights, dt_weight, a, d, delta_bias, orders, softplus

using CrossSignature = Tensor(VM_CROSS_PARAMETERS);
using CrossForwardSignature = std::tuple<Tensor, Tensor>(VM_CROSS_PARAMETERS);
using CrossBackwardSignature = CrossGradients(const Tensor& grad_out, VM_CROSS_PARAMETERS, const Tensor& checkpoints);
using ConvSignature = Tensor(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Activation activation);
using ConvBackwardSignature = std::tuple<Tensor, Tensor, Tensor>(const Tensor& grad_out, const Tensor& x, const Tensor& weight,
                                                                 const OptionalTensor& bias, Activation activation);

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// ---- CPU ---------------------------------------------------------------------------------------------------------------------

static std::tuple<Tensor, Tensor> scan_cpu(VM_SCAN_PARAMETERS) {
  auto result = scan_forward_cpu({VM_SCAN_ARGUMENTS}, false);
  return {std::get<0>(result), std::get<1>(result)};
}
static std::tuple<Tensor, Tensor, Tensor> scan_save_cpu(VM_SCAN_PARAMETERS) { return scan_forward_cpu({VM_SCAN_ARGUMENTS}, true); }
static ScanGradients scan_grad_cpu(const OptionalTensor& grad_out, const OptionalTensor& grad_last_state, VM_SCAN_PARAMETERS,
                                   const Tensor& checkpoints) {
  return scan_backward_cpu(grad_out, grad_last_state, {VM_SCAN_ARGUMENTS}, checkpoints);
}

static Tensor cross_cpu(VM_CROSS_PARAMETERS) { return std::get<0>(cross_forward_cpu({VM_CROSS_ARGUMENTS}, false)); }
static std::tuple<Tensor, Tensor> cross_save_cpu(VM_CROSS_PARAMETERS) { return cross_forward_cpu({VM_CROSS_ARGUMENTS}, true); }
static CrossGradients cross_grad_cpu(const Tensor& grad_out, VM_CROSS_PARAMETERS, const Tensor& checkpoints) {
  return cross_backward_cpu(grad_out, {VM_CROSS_ARGUMENTS}, checkpoints);
}

TORCH_LIBRARY_IMPL(vision_mamba, CPU, m) {
  m.impl("selective_scan", scan_cpu);
  m.impl("selective_scan_forward", scan_save_cpu);
  m.impl("selective_scan_backward", scan_grad_cpu);
  m.impl("cross_selective_scan", cross_cpu);
  m.impl("cross_selective_scan_forward", cross_save_cpu);
  m.impl("cross_selective_scan_backward", cross_grad_cpu);
  m.impl("causal_conv1d", conv_forward_cpu);
  m.impl("causal_conv1d_backward", conv_backward_cpu);
}

// ---- Meta: shapes only, sizes possibly symbolic -------------------------------------------------------------------------------

static Tensor empty_state(const ScanArguments& in, c10::SymIntArrayRef sizes) {
  return at::empty_symint(sizes, in.u.options().dtype(in.computing_type()));
}
static std::tuple<Tensor, Tensor> scan_meta(VM_SCAN_PARAMETERS) {
  const ScanArguments in{VM_SCAN_ARGUMENTS};
  check_scan(in);
  return {at::empty_like(u), empty_state(in, {u.sym_size(0), u.sym_size(1), a.sym_size(1)})};
}
static std::tuple<Tensor, Tensor, Tensor> scan_save_meta(VM_SCAN_PARAMETERS) {
  auto [out, last_state] = scan_meta(VM_SCAN_ARGUMENTS);
  Tensor checkpoints =
      empty_state({VM_SCAN_ARGUMENTS}, {u.sym_size(0), checkpoint_count(u.sym_size(2)), a.sym_size(1), u.sym_size(1)});
  return {out, last_state, checkpoints};
}
static ScanGradients scan_grad_meta(const OptionalTensor&, const OptionalTensor&, VM_SCAN_PARAMETERS, const Tensor&) {
  (void)softplus;
  const Tensor none = at::empty({0}, u.options().dtype(u.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
  // Sums over the batch come out contiguous, the others laid out like what they are the gradient of.
  auto flat = [](const Tensor& t) { return at::empty_like(t, at::MemoryFormat::Contiguous); };
  auto weight = [&](const Tensor& t) { return t.dim() == 2 ? flat(t) : at::empty_like(t); };
  return {at::empty_like(u), at::empty_like(delta), flat(a), weight(b), weight(c), given(d) ? flat(*d) : none,
          given(z) ? at::empty_like(*z) : none, given(delta_bias) ? flat(*delta_bias) : none};
}
static Tensor cross_meta(VM_CROSS_PARAMETERS) {
  const CrossArguments in{VM_CROSS_ARGUMENTS};
  check_cross(in);
  return at::empty_symint({u.sym_size(0), u.sym_size(-2), u.sym_size(-1)}, u.options());
}
static std::tuple<Tensor, Tensor> cross_save_meta(VM_CROSS_PARAMETERS) {
  Tensor out = cross_meta(VM_CROSS_ARGUMENTS);
  const auto type = CrossArguments{VM_CROSS_ARGUMENTS}.computing_type();
  return {out, at::empty_symint({u.sym_size(0), orders.sym_size(0), checkpoint_count(u.sym_size(-2)), a.sym_size(2), u.sym_size(-1)},
                                u.options().dtype(type))};
}
static CrossGradients cross_grad_meta(const Tensor&, VM_CROSS_PARAMETERS, const Tensor&) {
  (void)softplus, (void)orders;
  const Tensor none = at::empty({0}, u.options().dtype(u.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
  auto flat = [](const Tensor& t) { return at::empty_like(t, at::MemoryFormat::Contiguous); };
  return {flat(u), flat(weights), flat(dt_weight), flat(a), given(d) ? flat(*d) : none, given(delta_bias) ? flat(*delta_bias) : none};
}
static Tensor conv_meta(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Activation activation) {
  check_conv(x, weight, bias, activation);
  return at::empty_like(x);
}
static std::tuple<Tensor, Tensor, Tensor> conv_grad_meta(const Tensor&, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                                         Activation) {
  const Tensor none = at::empty({0}, x.options().dtype(conv_type(x)));
  return {at::empty_like(x), at::empty_like(weight, at::MemoryFormat::Contiguous),
          given(bias) ? at::empty_like(*bias, at::MemoryFormat::Contiguous) : none};
}

TORCH_LIBRARY_IMPL(vision_mamba, Meta, m) {
  m.impl("selective_scan", scan_meta);
  m.impl("selective_scan_forward", scan_save_meta);
  m.impl("selective_scan_backward", scan_grad_meta);
  m.impl("cross_selective_scan", cross_meta);
  m.impl("cross_selective_scan_forward", cross_save_meta);
  m.impl("cross_selective_scan_backward", cross_grad_meta);
  m.impl("causal_conv1d", conv_meta);
  m.impl("causal_conv1d_backward", conv_grad_meta);
}

// ---- autograd ----------------------------------------------------------------------------------------------------------------

// Whether any tensor asks for a gradient now.
template <class... Tensors>
static bool wants_gradient(const Tensors&... tensors) {
  if (!at::GradMode::is_enabled()) return false;
  auto wants = [](const auto& t) {
    if constexpr (std::is_same_v<std::decay_t<decltype(t)>, Tensor>) {
      return t.defined() && t.requires_grad();
    } else {
      return t.has_value() && t->defined() && t->requires_grad();
    }
  };
  return (wants(tensors) || ...);
}

// Libtorch's own complaint about a device without an implementation is a page long.
static void check_device(const char* op, const char* name, const Tensor& t) {
  const auto key = t.device().is_cuda() ? c10::DispatchKey::CUDA : t.is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::Meta;
  const bool known = t.is_cpu() || t.is_cuda() || t.is_meta();
  const std::string full = std::string("vision_mamba::") + op;
  const bool has = known && c10::Dispatcher::singleton().findSchemaOrThrow(full.c_str(), "").hasKernelForDispatchKey(key);
  TORCH_CHECK(has || !t.is_cuda(), full, ": ", name, " is on ", t.device(),
              ", and the CUDA kernels are not loaded: load libvision_mamba_ops_cuda.so too (scripts/build-cuda-op builds it)");
  TORCH_CHECK(has, full, ": ", name, " is on ", t.device(), ", expected cpu or cuda: there are no kernels for other devices");
}

static Tensor unpack(const OptionalTensor& t) { return given(t) ? *t : Tensor(); }
static OptionalTensor repack(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }
// The operators return an empty tensor for the gradient of what was not given.
static Tensor gradient_of(const Tensor& input, const Tensor& gradient) { return input.defined() ? gradient : Tensor(); }

// A gradient that can be used but not differentiated again. `apply(gradients, inputs...)` ties the gradients to the inputs by a node that says so.
static constexpr const char* kNoDoubleBackward =
    ": the second derivative (double backward) is not implemented; use the plain tensor reference where it is needed";

struct ScanGradientNode : Function<ScanGradientNode> {
  static variable_list forward(AutogradContext*, const OptionalTensor& grad_out, const OptionalTensor& grad_last_state,
                               VM_SCAN_PARAMETERS, const Tensor& checkpoints) {
    at::AutoDispatchBelowADInplaceOrView below;
    static auto op = find_operator<ScanBackwardSignature>("vision_mamba::selective_scan_backward");
    auto [gu, gdelta, ga, gb, gc, gd, gz, gbias] = op.call(grad_out, grad_last_state, VM_SCAN_ARGUMENTS, checkpoints);
    return {gu, gdelta, ga, gb, gc, gd, gz, gbias};
  }
  static variable_list backward(AutogradContext*, variable_list) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "vision_mamba::selective_scan", kNoDoubleBackward);
  }
};

static ScanGradients scan_grad_autograd(const OptionalTensor& grad_out, const OptionalTensor& grad_last_state, VM_SCAN_PARAMETERS,
                                        const Tensor& checkpoints) {
  if (wants_gradient(grad_out, grad_last_state, u, delta, a, b, c, d, z, delta_bias)) {
    auto g = ScanGradientNode::apply(grad_out, grad_last_state, VM_SCAN_ARGUMENTS, checkpoints);
    return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  static auto op = find_operator<ScanBackwardSignature>("vision_mamba::selective_scan_backward");
  return op.call(grad_out, grad_last_state, VM_SCAN_ARGUMENTS, checkpoints);
}

struct ScanNode : Function<ScanNode> {
  static variable_list forward(AutogradContext* ctx, VM_SCAN_PARAMETERS) {
    at::AutoDispatchBelowADInplaceOrView below;
    static auto op = find_operator<ScanForwardSignature>("vision_mamba::selective_scan_forward");
    auto [out, last_state, checkpoints] = op.call(VM_SCAN_ARGUMENTS);
    ctx->save_for_backward({u, delta, a, b, c, unpack(d), unpack(z), unpack(delta_bias), checkpoints});
    ctx->saved_data["softplus"] = softplus;
    ctx->set_materialize_grads(false);
    return {out, last_state};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    static auto op = find_operator<ScanBackwardSignature>("vision_mamba::selective_scan_backward");
    auto [gu, gdelta, ga, gb, gc, gd, gz, gbias] =
        op.call(repack(grads[0]), repack(grads[1]), s[0], s[1], s[2], s[3], s[4], repack(s[5]), repack(s[6]), repack(s[7]),
                ctx->saved_data["softplus"].toBool(), s[8]);
    return {gu, gdelta, ga, gb, gc, gradient_of(s[5], gd), gradient_of(s[6], gz), gradient_of(s[7], gbias), Tensor()};
  }
};

static std::tuple<Tensor, Tensor> scan_autograd(VM_SCAN_PARAMETERS) {
  check_device("selective_scan", "u", u);
  check_scan({VM_SCAN_ARGUMENTS});
  if (wants_gradient(u, delta, a, b, c, d, z, delta_bias)) {
    auto result = ScanNode::apply(VM_SCAN_ARGUMENTS);
    return {result[0], result[1]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  static auto op = find_operator<ScanSignature>("vision_mamba::selective_scan");
  return op.call(VM_SCAN_ARGUMENTS);
}

struct CrossGradientNode : Function<CrossGradientNode> {
  static variable_list forward(AutogradContext*, const Tensor& grad_out, VM_CROSS_PARAMETERS, const Tensor& checkpoints) {
    at::AutoDispatchBelowADInplaceOrView below;
    static auto op = find_operator<CrossBackwardSignature>("vision_mamba::cross_selective_scan_backward");
    auto [gu, gweights, gdt, ga, gd, gbias] = op.call(grad_out, VM_CROSS_ARGUMENTS, checkpoints);
    return {gu, gweights, gdt, ga, gd, gbias};
  }
  static variable_list backward(AutogradContext*, variable_list) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "vision_mamba::cross_selective_scan", kNoDoubleBackward);
  }
};

static CrossGradients cross_grad_autograd(const Tensor& grad_out, VM_CROSS_PARAMETERS, const Tensor& checkpoints) {
  if (wants_gradient(grad_out, u, weights, dt_weight, a, d, delta_bias)) {
    auto g = CrossGradientNode::apply(grad_out, VM_CROSS_ARGUMENTS, checkpoints);
    return {g[0], g[1], g[2], g[3], g[4], g[5]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  static auto op = find_operator<CrossBackwardSignature>("vision_mamba::cross_selective_scan_backward");
  return op.call(grad_out, VM_CROSS_ARGUMENTS, checkpoints);
}

struct CrossNode : Function<CrossNode> {
  static Tensor forward(AutogradContext* ctx, VM_CROSS_PARAMETERS) {
    at::AutoDispatchBelowADInplaceOrView below;
    static auto op = find_operator<CrossForwardSignature>("vision_mamba::cross_selective_scan_forward");
    auto [out, checkpoints] = op.call(VM_CROSS_ARGUMENTS);
    ctx->save_for_backward({u, weights, dt_weight, a, unpack(d), unpack(delta_bias), orders, checkpoints});
    ctx->saved_data["softplus"] = softplus;
    return out;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    static auto op = find_operator<CrossBackwardSignature>("vision_mamba::cross_selective_scan_backward");
    auto [gu, gweights, gdt, ga, gd, gbias] = op.call(grads[0], s[0], s[1], s[2], s[3], repack(s[4]), repack(s[5]), s[6],
                                                      ctx->saved_data["softplus"].toBool(), s[7]);
    return {gu, gweights, gdt, ga, gradient_of(s[4], gd), gradient_of(s[5], gbias), Tensor(), Tensor()};
  }
};

static Tensor cross_autograd(VM_CROSS_PARAMETERS) {
  check_device("cross_selective_scan", "u", u);
  check_cross({VM_CROSS_ARGUMENTS});
  if (wants_gradient(u, weights, dt_weight, a, d, delta_bias)) return CrossNode::apply(VM_CROSS_ARGUMENTS);
  at::AutoDispatchBelowADInplaceOrView below;
  static auto op = find_operator<CrossSignature>("vision_mamba::cross_selective_scan");
  return op.call(VM_CROSS_ARGUMENTS);
}

struct ConvGradientNode : Function<ConvGradientNode> {
  static variable_list forward(AutogradContext*, const Tensor& grad_out, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                               Activation activation) {
    at::AutoDispatchBelowADInplaceOrView below;
    static auto op = find_operator<ConvBackwardSignature>("vision_mamba::causal_conv1d_backward");
    auto [gx, gweight, gbias] = op.call(grad_out, x, weight, bias, activation);
    return {gx, gweight, gbias};
  }
  static variable_list backward(AutogradContext*, variable_list) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "vision_mamba::causal_conv1d", kNoDoubleBackward);
  }
};

static std::tuple<Tensor, Tensor, Tensor> conv_grad_autograd(const Tensor& grad_out, const Tensor& x, const Tensor& weight,
                                                             const OptionalTensor& bias, Activation activation) {
  if (wants_gradient(grad_out, x, weight, bias)) {
    auto g = ConvGradientNode::apply(grad_out, x, weight, bias, activation);
    return {g[0], g[1], g[2]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  static auto op = find_operator<ConvBackwardSignature>("vision_mamba::causal_conv1d_backward");
  return op.call(grad_out, x, weight, bias, activation);
}

struct ConvNode : Function<ConvNode> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Activation activation) {
    at::AutoDispatchBelowADInplaceOrView below;
    static auto op = find_operator<ConvSignature>("vision_mamba::causal_conv1d");
    ctx->save_for_backward({x, weight, unpack(bias)});
    ctx->saved_data["activation"] = activation.has_value() ? std::string(*activation) : std::string();
    return op.call(x, weight, bias, activation);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    static auto op = find_operator<ConvBackwardSignature>("vision_mamba::causal_conv1d_backward");
    const std::string name = ctx->saved_data["activation"].toStringRef();
    auto [gx, gweight, gbias] = op.call(grads[0], s[0], s[1], repack(s[2]), name.empty() ? Activation() : Activation(name));
    return {gx, gweight, gradient_of(s[2], gbias), Tensor()};
  }
};

static Tensor conv_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Activation activation) {
  check_device("causal_conv1d", "x", x);
  check_conv(x, weight, bias, activation);
  if (wants_gradient(x, weight, bias)) return ConvNode::apply(x, weight, bias, activation);
  at::AutoDispatchBelowADInplaceOrView below;
  static auto op = find_operator<ConvSignature>("vision_mamba::causal_conv1d");
  return op.call(x, weight, bias, activation);
}

TORCH_LIBRARY_IMPL(vision_mamba, Autograd, m) {
  m.impl("selective_scan", scan_autograd);
  m.impl("selective_scan_backward", scan_grad_autograd);
  m.impl("cross_selective_scan", cross_autograd);
  m.impl("cross_selective_scan_backward", cross_grad_autograd);
  m.impl("causal_conv1d", conv_autograd);
  m.impl("causal_conv1d_backward", conv_grad_autograd);
}

}  // namespace vision_mamba

// ---- for the loader ------------------------------------------------------------------------------------------------------------

extern "C" {
// Read from the file before it is loaded; ends with a semicolon.
__attribute__((visibility("default"), used)) extern const char vision_mamba_ops_marker[] =
    "vision_mamba_ops built for libtorch " TORCH_VERSION ";";

__attribute__((visibility("default"))) const char* vision_mamba_ops_isa() { return vision_mamba::instruction_set().name; }
}
