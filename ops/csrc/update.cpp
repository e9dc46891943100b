// A step of an optimiser over all parameters of a network, and the moving average of its weights, in libtorch's fused and multi-tensor
// forms. Whether the gradient is finite is decided where it is: nothing here waits for a GPU.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "caught.h"

namespace vision_mamba {
namespace {

// As the loader lays it out. Lists have `count` entries.
struct Update {
  int64_t adamw;  // else SGD with Nesterov's momentum
  double lr, weight_decay, momentum, beta1, beta2, eps;
  double clip;  // the gradient's largest norm
  int64_t count;
  const at::Tensor* const* parameters;
  const at::Tensor* const* gradients;
  const at::Tensor* const* first;
  const at::Tensor* const* second;  // AdamW's
  const uint8_t* decays;            // whether weight decay acts
  at::Tensor* steps;                // taken so far: a float on the parameters' device
  const at::Tensor* loss;           // a scalar that must be finite too, or null
};

struct Lists {
  std::vector<at::Tensor> parameters, gradients, first, second, steps;
};

// The gradient in its parameter's strides, as the fused forms need it.
at::Tensor aligned(const at::Tensor& gradient, const at::Tensor& parameter) {
  return gradient.strides() == parameter.strides() ? gradient : at::empty_like(parameter).copy_(gradient);
}

Lists group(const Update& update, const std::vector<at::Tensor>& gradients, bool decays) {
  Lists lists;
  for (int64_t i = 0; i < update.count; ++i) {
    if ((update.decays[i] != 0) != decays) continue;
    lists.parameters.push_back(*update.parameters[i]);
    lists.gradients.push_back(gradients[i]);
    lists.first.push_back(*update.first[i]);
    if (update.adamw) lists.second.push_back(*update.second[i]);
    lists.steps.push_back(*update.steps);
  }
  return lists;
}

// Whether the step is taken, as a boolean scalar, and the norm of all gradients, a double.
std::pair<at::Tensor, at::Tensor> step(const Update& update) {
  std::vector<at::Tensor> gradients;
  for (int64_t i = 0; i < update.count; ++i) gradients.push_back(aligned(*update.gradients[i], *update.parameters[i]));
  const at::Tensor norm = at::stack(at::_foreach_norm(gradients)).to(at::kDouble).norm();
  at::Tensor taken = at::isfinite(norm);
  if (update.loss) taken = taken.logical_and(at::isfinite(*update.loss));
  const at::Tensor not_taken = taken.logical_not().to(at::kFloat);
  // the fused forms divide the gradient by it
  const at::Tensor excess = norm.add(1e-6).div(update.clip).clamp_min(1.0).to(at::kFloat);
  update.steps->add_(taken);
  for (const bool decays : {true, false}) {
    Lists l = group(update, gradients, decays);
    if (l.parameters.empty()) continue;
    const double decay = decays ? update.weight_decay : 0.0;
    if (update.adamw) {
      at::_fused_adamw_(l.parameters, l.gradients, l.first, l.second, {}, l.steps, update.lr, update.beta1, update.beta2, decay,
                        update.eps, false, false, excess, not_taken);
    } else {
      const bool moves = update.momentum != 0.0;
      at::_fused_sgd_(l.parameters, l.gradients, moves ? at::TensorList(l.first) : at::TensorList(), decay, update.momentum, update.lr,
                      0.0, moves, false, false, excess, not_taken);
    }
  }
  return {taken, norm};
}

}  // namespace
}  // namespace vision_mamba

extern "C" {

// `taken` and `norm` get new tensors.
__attribute__((visibility("default"))) const char* vision_mamba_update_step(const vision_mamba::Update* update, at::Tensor** taken,
                                                                            at::Tensor** norm) {
  return vision_mamba::caught([&] {
    const at::NoGradGuard no_grad;
    auto [was_taken, found] = vision_mamba::step(*update);
    *taken = new at::Tensor(std::move(was_taken));
    *norm = new at::Tensor(std::move(found));
  });
}

// means += weight (values - means)
__attribute__((visibility("default"))) const char* vision_mamba_update_average(int64_t count, const at::Tensor* const* means,
                                                                               const at::Tensor* const* values, double weight) {
  return vision_mamba::caught([&] {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> to, from;
    for (int64_t i = 0; i < count; ++i) {
      to.push_back(*means[i]);
      from.push_back(*values[i]);
    }
    at::_foreach_lerp_(to, from, weight);
  });
}

// Forgets gradients, so that the next backward pass makes them anew instead of adding to zeros.
__attribute__((visibility("default"))) const char* vision_mamba_update_forget(int64_t count, const at::Tensor* const* parameters) {
  return vision_mamba::caught([&] {
    for (int64_t i = 0; i < count; ++i) parameters[i]->mutable_grad().reset();
  });
}
}
