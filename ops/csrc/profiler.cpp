// Where the time of all threads goes, by libtorch's operators: calls of each and seconds in it and not in an operator that it called.
#include <ATen/record_function.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "caught.h"

namespace vision_mamba {
namespace {

using Clock = std::chrono::steady_clock;

struct Row {
  int64_t calls = 0;
  double seconds = 0;
};

struct Profiler {
  std::mutex mutex;
  std::map<std::string, Row> rows;
  int64_t device = -1;  // a GPU that each operator waits for
  at::CallbackHandle handle = 0;
};

// Callbacks are plain functions, so the one profiler stands here.
Profiler* active = nullptr;

struct Call : at::ObserverContext {
  Clock::time_point begin;
  double inside = 0;  // seconds in operators that it called
};

// The calls that this thread is in.
thread_local std::vector<Call*> open;

std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction&) {
  auto call = std::make_unique<Call>();
  open.push_back(call.get());
  call->begin = Clock::now();
  return call;
}

void on_end(const at::RecordFunction& fn, at::ObserverContext* context) {
  auto* call = static_cast<Call*>(context);
  if (!call || open.empty() || open.back() != call) return;
  open.pop_back();
  if (!active) return;
  // An operator on a GPU is over when the GPU is, and not when it has been told.
  if (active->device >= 0 && open.empty()) {
    try {
      c10::impl::VirtualGuardImpl(c10::kCUDA).synchronizeDevice(static_cast<c10::DeviceIndex>(active->device));
    } catch (...) {
      // The next operation reports what is wrong.
    }
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - call->begin).count();
  if (!open.empty()) open.back()->inside += seconds;
  const std::lock_guard<std::mutex> lock(active->mutex);
  Row& row = active->rows[fn.name()];
  row.calls += 1;
  row.seconds += seconds - call->inside;
}

}  // namespace
}  // namespace vision_mamba

extern "C" {

// Starts the process's one profiler; `device` is the GPU that operators wait for, or -1.
__attribute__((visibility("default"))) const char* vision_mamba_profiler_start(int64_t device) {
  using namespace vision_mamba;
  return caught([&] {
    if (active) throw std::runtime_error("operators are being timed already");
    auto profiler = std::make_unique<Profiler>();
    profiler->device = device;
    active = profiler.get();
    profiler->handle = at::addGlobalCallback(at::RecordFunctionCallback(on_start, on_end).scopes({at::RecordScope::FUNCTION}));
    profiler.release();
  });
}

// Stops it and gives every operator to `take`.
__attribute__((visibility("default"))) const char* vision_mamba_profiler_stop(void* to, void (*take)(void* to, const char* name,
                                                                                                      int64_t calls, double seconds)) {
  using namespace vision_mamba;
  return caught([&] {
    const std::unique_ptr<Profiler> profiler(active);
    if (!profiler) return;
    at::removeCallback(profiler->handle);
    active = nullptr;
    for (const auto& [name, row] : profiler->rows) take(to, name.c_str(), row.calls, row.seconds);
  });
}
}
