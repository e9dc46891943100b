// Keeps the matrix products and convolutions of a stretch of a thread's work with their arguments, and runs them again alone: what a network costs
// beyond them is then the ratio of two times.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <memory>
#include <string_view>
#include <vector>

namespace vision_mamba {
namespace {

struct Kept {
  c10::OperatorHandle op;
  std::vector<c10::IValue> inputs;
};

struct Products {
  std::vector<Kept> kept;
  int open = 0;  // calls under way: what a product calls is part of it
  at::CallbackHandle handle = 0;
};

// Callbacks are plain functions, so the list that a thread is making stands here.
thread_local Products* active = nullptr;

struct Call : at::ObserverContext {
  bool product = false;
};

bool is_product(std::string_view name) {
  static constexpr std::string_view products[] = {
      "aten::convolution", "aten::mm",    "aten::addmm", "aten::bmm",           "aten::baddbmm",
      "aten::mv",          "aten::addmv", "aten::dot",   "aten::mkldnn_linear", "aten::_addmm_activation",
      "aten::mkldnn_convolution", "vision_mamba::causal_conv1d"};
  return std::find(std::begin(products), std::end(products), name) != std::end(products);
}

std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& fn) {
  auto call = std::make_unique<Call>();
  if (!active || !is_product(fn.name())) return call;
  call->product = true;
  const auto name = fn.operator_name();
  if (active->open++ == 0 && name.has_value()) {
    const auto op = c10::Dispatcher::singleton().findSchema(*name);
    const auto inputs = fn.inputs();
    if (op.has_value()) active->kept.push_back({*op, std::vector<c10::IValue>(inputs.begin(), inputs.end())});
  }
  return call;
}

void on_end(const at::RecordFunction&, at::ObserverContext* context) {
  const auto* call = static_cast<Call*>(context);
  if (active && call && call->product) active->open--;
}

}  // namespace
}  // namespace vision_mamba

extern "C" {

// Begins to keep the calling thread's products, or null if that is under way already.
__attribute__((visibility("default"))) void* vision_mamba_products_start() {
  using namespace vision_mamba;
  if (active) return nullptr;
  try {
    auto products = std::make_unique<Products>();
    products->handle = at::addThreadLocalCallback(at::RecordFunctionCallback(on_start, on_end).needsInputs(true));
    return active = products.release();
  } catch (...) {
    return nullptr;
  }
}

// Ends it; to be called once, by the same thread. Returns how many there are.
__attribute__((visibility("default"))) int64_t vision_mamba_products_end(void* given) {
  const auto* products = static_cast<vision_mamba::Products*>(given);
  vision_mamba::active = nullptr;
  try {
    at::removeCallback(products->handle);
  } catch (...) {
  }
  return static_cast<int64_t>(products->kept.size());
}

// Runs them again, without gradients; false where libtorch refuses.
__attribute__((visibility("default"))) bool vision_mamba_products_run(const void* given) {
  try {
    const at::NoGradGuard no_grad;
    c10::Stack stack;
    for (const auto& call : static_cast<const vision_mamba::Products*>(given)->kept) {
      stack.assign(call.inputs.begin(), call.inputs.end());
      call.op.callBoxed(stack);
      stack.clear();
    }
    return true;
  } catch (...) {
    return false;
  }
}

__attribute__((visibility("default"))) void vision_mamba_products_free(void* given) { delete static_cast<vision_mamba::Products*>(given); }
}
