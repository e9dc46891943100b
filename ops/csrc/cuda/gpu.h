// What the kernels need of a GPU. The same names stand in emulation.h, so that one source serves the GPU and the tests.
#pragma once
#include <ATen/core/Tensor.h>

#ifdef VM_EMULATED
#include "emulation.h"
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime.h>

namespace vision_mamba {

__device__ __forceinline__ int thread_index() { return int(threadIdx.x); }
__device__ __forceinline__ int64_t block_index() { return blockIdx.x; }
__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
__device__ __forceinline__ int shuffle_from(int value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
// Sixteen bytes of device memory into shared memory while the thread goes on; `wait_copies` waits for the thread's own.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_word_async(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
__device__ __forceinline__ uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float float_of(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// `a` or `b`, both of them computed: left to itself the compiler makes a branch of it.
__device__ __forceinline__ float choose(bool first, float a, float b) {
  float y;
  asm("{ .reg .pred p; setp.ne.s32 p, %1, 0; selp.f32 %0, %2, %3, p; }" : "=f"(y) : "r"(int(first)), "f"(a), "f"(b));
  return y;
}
// mantissa * 2^n, n in the low bits of `shifted`.
__device__ __forceinline__ float exp2_by_bits(float mantissa, float shifted) {
  return __int_as_float(__float_as_int(mantissa) + (__float_as_int(shifted) << 23));
}
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ float4 vm_shared[];
  return reinterpret_cast<char*>(vm_shared);
}

inline int64_t multiprocessors() {
  int device = 0, count = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Bytes of shared memory that a block may ask for, and that a multiprocessor has for all its blocks.
struct SharedLimits {
  size_t block, multiprocessor;
};
inline SharedLimits shared_limits() {
  int device = 0, block = 0, multiprocessor = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  return {size_t(block), size_t(multiprocessor)};
}

// On the current stream of the current device. Nothing here waits for the GPU.
template <class Kernel, class Job>
void launch(Kernel kernel, int64_t blocks, int threads, size_t shared, const Job& job) {
  if (blocks == 0) return;
  TORCH_CHECK(blocks <= 0x7fffffff, "vision_mamba: this input would take ", blocks, " blocks of threads, more than a launch can have");
  if (shared > 48 * 1024) C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
  kernel<<<unsigned(blocks), unsigned(threads), shared, c10::cuda::getCurrentCUDAStream()>>>(job);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}
struct DeviceOf {
  c10::cuda::CUDAGuard guard;
  explicit DeviceOf(const at::Tensor& t) : guard(t.device()) {}
};

}  // namespace vision_mamba
#define VM_KEY CUDA
#endif
