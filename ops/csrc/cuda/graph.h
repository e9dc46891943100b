// Work that is the same at every step, recorded once as a CUDA graph and launched as a whole: libtorch's CUDAGraph behind C functions. A graph owns the memory
// that it makes tensors in; those that its maker still holds keep their places, which every play writes anew.
#pragma once
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <memory>

#include "../caught.h"

namespace vision_mamba {

struct Recording {
  c10::DeviceIndex device;
  c10::cuda::CUDAStream before, own;  // the default stream cannot be recorded
  at::cuda::CUDAGraph graph;
  explicit Recording(c10::DeviceIndex on) : device(on), before(c10::cuda::getCurrentCUDAStream(on)), own(c10::cuda::getStreamFromPool(false, on)) {}
};

}  // namespace vision_mamba

extern "C" {

// Until `vision_mamba_graph_end`, what this thread has a GPU do is recorded and not done. Waits for the device first.
__attribute__((visibility("default"))) const char* vision_mamba_graph_begin(int64_t device, void** to) {
  using namespace vision_mamba;
  return caught([&] {
    const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
    auto made = std::make_unique<Recording>(static_cast<c10::DeviceIndex>(device));
    C10_CUDA_CHECK(cudaDeviceSynchronize());
    c10::cuda::setCurrentCUDAStream(made->own);
    try {
      made->graph.capture_begin();
    } catch (...) {
      c10::cuda::setCurrentCUDAStream(made->before);
      throw;
    }
    *to = made.release();
  });
}

// To be called once, by the same thread, whatever became of the work between.
__attribute__((visibility("default"))) const char* vision_mamba_graph_end(void* given) {
  using namespace vision_mamba;
  auto* made = static_cast<Recording*>(given);
  return caught([&] {
    const c10::cuda::CUDAGuard guard(made->device);
    try {
      made->graph.capture_end();
    } catch (...) {
      c10::cuda::setCurrentCUDAStream(made->before);
      throw;
    }
    c10::cuda::setCurrentCUDAStream(made->before);
  });
}

// Does the work, on the current stream. Nothing is waited for.
__attribute__((visibility("default"))) const char* vision_mamba_graph_play(void* given) {
  using namespace vision_mamba;
  auto* made = static_cast<Recording*>(given);
  return caught([&] {
    const c10::cuda::CUDAGuard guard(made->device);
    made->graph.replay();
  });
}

// Waits for the device: a graph that is being played must not go.
__attribute__((visibility("default"))) void vision_mamba_graph_free(void* given) {
  using namespace vision_mamba;
  std::unique_ptr<Recording> made(static_cast<Recording*>(given));
  caught([&] {
    const c10::cuda::CUDAGuard guard(made->device);
    C10_CUDA_CHECK(cudaDeviceSynchronize());
    made.reset();
  });
}
}
