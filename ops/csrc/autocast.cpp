// Automatic mixed precision of the calling thread: libtorch's own switch, whose element type its C interface cannot choose.
#include <ATen/autocast_mode.h>

namespace {

// What the loader knows of an element type: 0 none (off), 1 bfloat16, 2 float16.
enum Mode : int { off = 0, bfloat16 = 1, float16 = 2 };

}  // namespace

extern "C" {

// Sets the mode of one kind of device, the CPU or CUDA, and returns the one before; -1 where libtorch refuses.
__attribute__((visibility("default"))) int vision_mamba_autocast_swap(int cuda, int mode) {
  const auto device = cuda ? at::kCUDA : at::kCPU;
  try {
    const int before = !at::autocast::is_autocast_enabled(device)                      ? off
                       : at::autocast::get_autocast_dtype(device) == at::kBFloat16 ? bfloat16
                                                                                   : float16;
    at::autocast::set_autocast_enabled(device, mode != off);
    if (mode != off) at::autocast::set_autocast_dtype(device, mode == bfloat16 ? at::kBFloat16 : at::kHalf);
    return before;
  } catch (...) {
    return -1;
  }
}

// Forgets the weights' copies in the lower precision: a step of the optimiser makes them stale.
__attribute__((visibility("default"))) void vision_mamba_autocast_clear() {
  try {
    at::autocast::clear_cache();
  } catch (...) {
  }
}
}
