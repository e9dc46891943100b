// Activation checkpointing: a part of a network whose inner values are not kept for the backward pass but computed again there
// (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016).
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "caught.h"

namespace vision_mamba {
namespace {

namespace autograd = torch::autograd;

// The part, as the loader has it: `run` puts `outputs` new tensors and returns 0, or fails; `drop` gives `state` back.
struct Part {
  void* state;
  int (*run)(void* state, const at::Tensor* const* inputs, int64_t count, at::Tensor** outputs, int64_t outputs_count);
  void (*drop)(void* state);
};

// Random numbers of the CPU and of the GPU that the part computes on.
struct Randomness {
  std::vector<std::pair<at::Generator, at::Tensor>> states;

  static Randomness of(c10::Device device) {
    Randomness now;
    now.add(at::globalContext().defaultGenerator(c10::Device(c10::kCPU)));
    if (!device.is_cpu()) now.add(at::globalContext().defaultGenerator(device));
    return now;
  }
  void add(at::Generator generator) {
    const std::lock_guard<std::mutex> lock(generator.mutex());
    states.emplace_back(generator, generator.get_state());
  }
  void restore() {
    for (auto& [generator, state] : states) {
      const std::lock_guard<std::mutex> lock(generator.mutex());
      generator.set_state(state);
    }
  }
};

struct Again : autograd::Node {
  Again(Part given, const std::vector<at::Tensor>& inputs, Randomness before, int64_t outputs)
      : part(given), randomness(std::move(before)), count(outputs) {
    for (const at::Tensor& input : inputs) saved.emplace_back(input, false);
  }
  ~Again() override { part.drop(part.state); }

  void release_variables() override {
    for (auto& variable : saved) variable.reset_data();
    released = true;
  }

  autograd::variable_list apply(autograd::variable_list&& gradients) override {
    if (released) throw std::runtime_error("this part of the network has been differentiated already");
    std::vector<at::Tensor> inputs;
    for (auto& variable : saved) {
      const at::Tensor input = variable.unpack();
      inputs.push_back(input.detach().set_requires_grad(input.requires_grad()));
    }
    std::vector<const at::Tensor*> given;
    for (const at::Tensor& input : inputs) given.push_back(&input);
    std::vector<at::Tensor*> made(static_cast<size_t>(count), nullptr);
    Randomness now = Randomness::of(inputs.at(0).device());
    randomness.restore();
    int failed = 0;
    {
      const at::AutoGradMode recording(true);
      failed = part.run(part.state, given.data(), static_cast<int64_t>(given.size()), made.data(), count);
    }
    now.restore();
    autograd::variable_list outputs, wanted;
    for (size_t i = 0; i < made.size(); ++i) {
      if (!made[i]) continue;
      if (gradients.at(i).defined() && made[i]->requires_grad()) {
        outputs.push_back(*made[i]);
        wanted.push_back(gradients[i]);
      }
      delete made[i];
    }
    if (failed) throw std::runtime_error("a part of the network failed when it was computed again");
    if (!outputs.empty()) autograd::backward(outputs, wanted);
    autograd::variable_list result;
    for (const at::Tensor& input : inputs) result.push_back(input.requires_grad() ? input.grad() : at::Tensor());
    return result;
  }

  Part part;
  Randomness randomness;
  int64_t count;
  std::vector<autograd::SavedVariable> saved;
  bool released = false;
};

}  // namespace
}  // namespace vision_mamba

extern "C" {

// Runs the part without keeping anything; `outputs` get new tensors that know how to come to gradients. Takes `part.state` in any case.
__attribute__((visibility("default"))) const char* vision_mamba_recompute(vision_mamba::Part part, const at::Tensor* const* inputs,
                                                                          int64_t count, at::Tensor** outputs, int64_t outputs_count) {
  using namespace vision_mamba;
  const char* said = caught([&] {
    bool owned = true;
    try {
      std::vector<at::Tensor> in;
      for (int64_t i = 0; i < count; ++i) in.push_back(*inputs[i]);
      Randomness before = Randomness::of(in.at(0).device());
      {
        const at::NoGradGuard plain;
        if (part.run(part.state, inputs, count, outputs, outputs_count)) throw std::runtime_error("a part of the network failed");
      }
      const std::shared_ptr<Again> node(new Again(part, in, std::move(before), outputs_count), autograd::deleteNode);
      owned = false;
      node->set_next_edges(autograd::collect_next_edges(in));
      for (int64_t i = 0; i < outputs_count; ++i) {
        const at::Tensor fresh = outputs[i]->detach();
        autograd::set_history(fresh, node);
        *outputs[i] = fresh;
      }
    } catch (...) {
      if (owned) part.drop(part.state);
      throw;
    }
  });
  if (said) {
    for (int64_t i = 0; i < outputs_count; ++i) {
      delete outputs[i];
      outputs[i] = nullptr;
    }
  }
  return said;
}
}
