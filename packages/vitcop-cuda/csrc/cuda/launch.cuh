// How a kernel becomes a CUDA launch. Included by the .cu files alone.
#pragma once

#include "cuda/block.cuh"
#include "cuda/launch.h"
#include "vitcop/portable.h"

namespace vitcop::cuda {

// The registers are all for one block: left to choose, the compiler spills some to make room for a second.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1) run(const __grid_constant__ Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  const Block<Kernel::kThreads> block;
  const int64_t units = kernel.units();
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    kernel(block, shared, unit);
    block.sync();  // before the next unit writes to shared memory
  }
}

template <class Kernel>
cudaError_t launch(const Kernel& kernel, cudaStream_t stream) {
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
  const int64_t units = kernel.units();
  if (units == 0) return cudaSuccess;
  run<<<static_cast<unsigned>(smaller(units, kMostBlocks)), Kernel::kThreads, 0, stream>>>(kernel);
  return cudaGetLastError();
}

}  // namespace vitcop::cuda

#define VITCOP_LAUNCH(...) \
  template cudaError_t vitcop::cuda::launch(const vitcop::__VA_ARGS__& kernel, cudaStream_t stream)

#define VITCOP_LAUNCH_SCALARS(Kernel)       \
  VITCOP_LAUNCH(Kernel<double>);            \
  VITCOP_LAUNCH(Kernel<float>);             \
  VITCOP_LAUNCH(Kernel<vitcop::Half>);      \
  VITCOP_LAUNCH(Kernel<vitcop::BFloat16>)
