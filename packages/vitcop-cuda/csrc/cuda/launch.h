// Launches of the kernels of include/vitcop, without torch: each .cu file has those of one operator.
#pragma once

#include <cuda_runtime_api.h>

namespace vitcop::cuda {

// Enqueues a kernel, and returns what the launch returned. Never waits. Nothing is launched for no units.
template <class Kernel>
cudaError_t launch(const Kernel& kernel, cudaStream_t stream);

}  // namespace vitcop::cuda
