// The CUDA kernels of the operators whose schemas vitcop-core defines.
#define USE_CUDA  // torch's headers then declare its C functions for CUDA

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "cuda/launch.h"
#include "glue/register.h"

namespace {

void* current_stream(int32_t device) {
  void* stream = nullptr;
  vitcop::glue::require(aoti_torch_get_current_cuda_stream(device, &stream), "reading the current stream");
  return stream;
}

// Launches on the current stream of a tensor's device.
class CudaLauncher {
 public:
  explicit CudaLauncher(const torch::stable::Tensor& like)
      : guard_(like.get_device_index()), stream_(static_cast<cudaStream_t>(current_stream(like.get_device_index()))) {}

  template <class Kernel>
  void operator()(const Kernel& kernel) const {
    STD_CUDA_CHECK(vitcop::cuda::launch(kernel, stream_));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitcop, CUDA, library) { vitcop::glue::implement<CudaLauncher>(library); }
