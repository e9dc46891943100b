// Counts what a thread computes between start and stop: multiply-adds and seconds of matrix products, convolutions and scans,
// and the bytes that its tensors hold. It listens to libtorch's dispatcher and allocator, so it needs no word from the networks.
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string_view>

namespace vision_mamba {
namespace {

using Clock = std::chrono::steady_clock;

// Bytes that the CPU allocator handed out to this thread and has not got back.
struct Memory : c10::MemoryReportingInfoBase {
  int64_t now = 0;
  int64_t peak = 0;
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    now += size;
    peak = std::max(peak, now);
  }
  bool memoryProfilingEnabled() const override { return true; }
};

struct Meter {
  double product_multiply_adds = 0, product_seconds = 0;
  double scan_multiply_adds = 0, scan_seconds = 0;
  bool inside = false;
  std::shared_ptr<Memory> memory = std::make_shared<Memory>();
  std::unique_ptr<c10::DebugInfoGuard> guard;
  at::CallbackHandle handle = 0;
};

// Callbacks are plain functions, so the meter of a thread stands here.
thread_local Meter* active = nullptr;

enum class Sort { other, product, scan };

// Multiply-adds of a call are `fixed`, plus `an_output` for every value of its result: inputs are there only before it, outputs only
// after it.
struct Work {
  double fixed = 0, an_output = 0;
};

struct Call : at::ObserverContext {
  Sort sort = Sort::other;
  Work work;
  Clock::time_point begin;
};

Sort sort_of(std::string_view name) {
  static constexpr std::string_view products[] = {"aten::convolution", "aten::mm",  "aten::addmm", "aten::bmm",
                                                  "aten::baddbmm",     "aten::mv",  "aten::addmv", "aten::dot",
                                                  "aten::mkldnn_linear", "aten::_addmm_activation", "aten::mkldnn_convolution"};
  if (name == "vision_mamba::selective_scan" || name == "vision_mamba::cross_selective_scan") return Sort::scan;
  return std::find(std::begin(products), std::end(products), name) != std::end(products) ? Sort::product : Sort::other;
}

double elements(const at::Tensor& t) { return static_cast<double>(t.numel()); }

Work work_of(std::string_view name, c10::ArrayRef<const c10::IValue> in) {
  const auto tensor = [&](size_t i) { return in.at(i).toTensor(); };
  if (name == "aten::convolution") {
    // Each input value of a transposed convolution, each output value of another, meets this many weights.
    const double met = elements(tensor(1)) / static_cast<double>(tensor(1).size(0));
    return in.at(6).toBool() ? Work{met * elements(tensor(0)), 0} : Work{0, met};
  }
  if (name == "aten::mkldnn_convolution") return {0, elements(tensor(1)) / static_cast<double>(tensor(1).size(0))};
  // As VMamba counts it: 9 for every state of every channel and step.
  if (name == "vision_mamba::selective_scan") return {9.0 * elements(tensor(0)) * static_cast<double>(tensor(2).size(1)), 0};
  if (name == "vision_mamba::cross_selective_scan") {
    // u is (B, L, D) or (B, K, L, D), dt_weight (K, D, R), A (K, D, N)
    const at::Tensor u = tensor(0), dt_weight = tensor(2), a = tensor(3);
    const double steps = static_cast<double>(u.size(0) * u.size(-2) * u.size(-1) * a.size(0));
    return {steps * (9.0 * static_cast<double>(a.size(2)) + static_cast<double>(dt_weight.size(2))), 0};
  }
  const bool added = name == "aten::addmm" || name == "aten::baddbmm" || name == "aten::addmv" || name == "aten::_addmm_activation";
  // The length of the sums.
  return {0, static_cast<double>(tensor(added ? 1 : 0).size(-1))};
}

std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& fn) {
  Meter* meter = active;
  auto call = std::make_unique<Call>();
  if (!meter) return call;
  const Sort sort = sort_of(fn.name());
  // What runs inside a counted call is part of it.
  if (sort == Sort::other || meter->inside) return call;
  meter->inside = true;
  call->sort = sort;
  try {
    call->work = work_of(fn.name(), fn.inputs());
  } catch (...) {
    // A form with other arguments: its time still counts.
  }
  call->begin = Clock::now();
  return call;
}

void on_end(const at::RecordFunction& fn, at::ObserverContext* context) {
  Meter* meter = active;
  auto* call = static_cast<Call*>(context);
  if (!meter || !call || call->sort == Sort::other) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - call->begin).count();
  (call->sort == Sort::scan ? meter->scan_seconds : meter->product_seconds) += seconds;
  meter->inside = false;
  double outputs = 0;
  for (const auto& value : fn.outputs()) {
    if (value.isTensor()) outputs += elements(value.toTensor());
  }
  (call->sort == Sort::scan ? meter->scan_multiply_adds : meter->product_multiply_adds) +=
      call->work.fixed + outputs * call->work.an_output;
}

}  // namespace
}  // namespace vision_mamba

extern "C" {

// A meter of the calling thread, or null if it has one already.
__attribute__((visibility("default"))) void* vision_mamba_meter_start() {
  using namespace vision_mamba;
  if (active) return nullptr;
  try {
    auto meter = std::make_unique<Meter>();
    meter->guard = std::make_unique<c10::DebugInfoGuard>(c10::DebugInfoKind::PROFILER_STATE, meter->memory);
    meter->handle = at::addThreadLocalCallback(at::RecordFunctionCallback(on_start, on_end).needsInputs(true).needsOutputs(true));
    return active = meter.release();
  } catch (...) {
    return nullptr;
  }
}

// multiply-adds and seconds of products, the same of scans, bytes held now, bytes held at the peak.
__attribute__((visibility("default"))) void vision_mamba_meter_read(const void* given, double* out) {
  const auto* meter = static_cast<const vision_mamba::Meter*>(given);
  out[0] = meter->product_multiply_adds;
  out[1] = meter->product_seconds;
  out[2] = meter->scan_multiply_adds;
  out[3] = meter->scan_seconds;
  out[4] = static_cast<double>(meter->memory->now);
  out[5] = static_cast<double>(meter->memory->peak);
}

__attribute__((visibility("default"))) void vision_mamba_meter_stop(void* given) {
  std::unique_ptr<vision_mamba::Meter> meter(static_cast<vision_mamba::Meter*>(given));
  vision_mamba::active = nullptr;
  try {
    at::removeCallback(meter->handle);
  } catch (...) {
  }
}
}
