// What libtorch's C interface does not reach: transfers beside the computation, memory formats, TF32, algorithms of the same bits, waiting for a device. Devices are met
// through their registered guards, so this library links none of them.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <map>
#include <mutex>

#include "caught.h"

namespace vision_mamba {
namespace {

// One stream a device for uploads, for the whole process.
c10::Stream upload_stream(const c10::impl::VirtualGuardImpl& guard, c10::Device device) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, c10::Stream> streams;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = streams.find(device.index());
  if (found != streams.end()) return found->second;
  return streams.emplace(device.index(), guard.getStreamFromGlobalPool(device)).first->second;
}

// From pinned memory on a stream of its own; the device's current stream waits for it, the host does not.
at::Tensor upload(const at::Tensor& from, c10::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  const c10::Stream side = upload_stream(guard, device);
  const c10::Stream current = guard.getStream(device);
  at::Tensor on_device;
  {
    const c10::StreamGuard on_side(side);
    on_device = from.pin_memory().to(device, from.scalar_type(), /*non_blocking=*/true);
  }
  c10::Event uploaded(device.type());
  uploaded.record(side);
  uploaded.block(current);
  // its memory belongs to the side stream, and must not be given away while the current one reads it
  on_device.record_stream(current);
  return on_device;
}

}  // namespace
}  // namespace vision_mamba

extern "C" {

__attribute__((visibility("default"))) const char* vision_mamba_device_upload(const at::Tensor* from, int64_t index, at::Tensor** to) {
  return vision_mamba::caught([&] {
    *to = new at::Tensor(vision_mamba::upload(*from, c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index))));
  });
}

__attribute__((visibility("default"))) const char* vision_mamba_device_synchronize(int64_t index) {
  return vision_mamba::caught(
      [&] { c10::impl::VirtualGuardImpl(c10::kCUDA).synchronizeDevice(static_cast<c10::DeviceIndex>(index)); });
}

// A tensor of the same values with channels last in memory; one of other than four or five dimensions stays as it is.
__attribute__((visibility("default"))) const char* vision_mamba_device_channels_last(const at::Tensor* from, at::Tensor** to) {
  return vision_mamba::caught([&] {
    const auto format = from->dim() == 4   ? at::MemoryFormat::ChannelsLast
                        : from->dim() == 5 ? at::MemoryFormat::ChannelsLast3d
                                           : at::MemoryFormat::Preserve;
    *to = new at::Tensor(format == at::MemoryFormat::Preserve ? *from : from->contiguous(format));
  });
}

// Whether float32 products and convolutions on CUDA may round their factors to TF32's ten bits of mantissa.
__attribute__((visibility("default"))) const char* vision_mamba_device_tf32(int on) {
  return vision_mamba::caught([&] {
    at::globalContext().setAllowTF32CuBLAS(on != 0);
    at::globalContext().setAllowTF32CuDNN(on != 0);
  });
}

// Whether cuDNN and libtorch take algorithms that give the same bits in every run where they have them, and warn where they have none.
__attribute__((visibility("default"))) const char* vision_mamba_device_deterministic(int on) {
  return vision_mamba::caught([&] {
    at::globalContext().setDeterministicCuDNN(on != 0);
    at::globalContext().setDeterministicAlgorithms(on != 0, /*warn_only=*/true);
    // Which costs a pass over every new tensor, and is for finding programs that read what they never wrote.
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  });
}
}
