// Float32 matrix products on the CPU by oneDNN where that is faster than MKL, which libtorch takes for them: MKL has AVX-512 for Intel's processors
// alone, and half the speed of others that have it too. Both are inside libtorch. What is put in place of libtorch's own kernels here serves
// gradients and every caller alike; other types, small products and other processors are passed on to them.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/mm_cpu_dispatch.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <atomic>
#include <optional>

#include "caught.h"

namespace vision_mamba {
namespace {

using at::Tensor;

// Multiply-adds from which oneDNN's eight microseconds a call are made up for.
constexpr int64_t kWorth = 1 << 20;

std::atomic<bool> wanted{false};

bool is_served(const Tensor& a, const Tensor& b) {
  return wanted.load(std::memory_order_relaxed) && a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat && a.layout() == at::kStrided &&
         b.layout() == at::kStrided && a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0) && a.size(0) * a.size(1) * b.size(1) >= kWorth &&
         at::globalContext().userEnabledMkldnn();
}

using Linear = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, c10::string_view, c10::List<std::optional<at::Scalar>>,
                      std::optional<c10::string_view>);

std::optional<c10::OperatorHandle> linear_op() { return c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""}); }

// Whether rows, or else columns, lie one behind the other, at least as far apart as they are long.
bool is_row_major(const Tensor& t) { return t.stride(1) == 1 && t.stride(0) >= t.size(1); }
bool is_column_major(const Tensor& t) { return t.stride(0) == 1 && t.stride(1) >= t.size(0); }

// a b, plus a row. oneDNN takes the second factor as it lies and copies the first to rows; where that is the longer copy, the transposed
// product is made, (b^T a^T)^T.
Tensor product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& row) {
  static const auto op = linear_op()->typed<Linear>();
  const auto call = [](const Tensor& x, const Tensor& y, const std::optional<Tensor>& bias) {
    const Tensor weight = is_row_major(y) || is_column_major(y) ? y.t() : y.contiguous().t();
    return op.redispatch(c10::DispatchKeySet(c10::DispatchKey::CPU), x, weight, bias, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt);
  };
  const int64_t copied = is_row_major(a) ? 0 : a.numel();
  const int64_t copied_transposed = (is_column_major(b) ? 0 : b.numel()) + a.size(0) * b.size(1);
  if (copied <= copied_transposed) return call(a, b, row);
  Tensor out = call(b.t(), a.t(), std::nullopt).t().contiguous();
  return row.has_value() ? out.add_(*row) : out;
}

Tensor mm(const Tensor& a, const Tensor& b) { return is_served(a, b) ? product(a, b, std::nullopt) : at::cpu::mm(a, b); }

Tensor addmm(const Tensor& row, const Tensor& a, const Tensor& b, const at::Scalar& beta, const at::Scalar& alpha) {
  const bool plain = row.scalar_type() == at::kFloat && row.dim() == 1 && row.layout() == at::kStrided && beta.equal(1) && alpha.equal(1);
  if (plain && is_served(a, b) && row.size(0) == b.size(1)) return product(a, b, row.contiguous());
  return at::cpu::addmm(row, a, b, beta, alpha);
}

bool is_faster() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return !__builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

// That one kernel takes the place of another is what is meant here, and no cause for libtorch's warning.
struct Silent : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

void take_place() {
  Silent silent;
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  // never destroyed: which would give libtorch its kernels back while other threads still compute
  auto* library = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__);
  library->impl("mm", TORCH_FN(mm));
  library->impl("addmm", TORCH_FN(addmm));
}

}  // namespace
}  // namespace vision_mamba

extern "C" {

// Whether oneDNN makes large products from now on, which it does only where it is faster; nothing changes where `on` is negative. `now` receives
// whether it does.
__attribute__((visibility("default"))) const char* vision_mamba_gemm_onednn(int on, int* now) {
  return vision_mamba::caught([&] {
    static const bool possible = vision_mamba::is_faster() && vision_mamba::linear_op().has_value() && (vision_mamba::take_place(), true);
    if (on >= 0) vision_mamba::wanted = possible && on != 0;
    *now = vision_mamba::wanted;
  });
}
}
