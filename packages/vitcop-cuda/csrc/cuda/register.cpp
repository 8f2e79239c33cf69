// The CUDA kernels of the operators whose schemas vitcop-core defines.
#include <ATen/ops/bmm.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/launch.h"
#include "glue/register.h"

namespace {

// Launches on the current stream. The caller guards the device.
class CudaLauncher {
 public:
  explicit CudaLauncher(at::Device device) : stream_(c10::cuda::getCurrentCUDAStream(device.index())) {}

  template <class Kernel>
  void operator()(const Kernel& kernel) const {
    C10_CUDA_CHECK(vitcop::cuda::launch(kernel, stream_.stream()));
  }

  void multiply(at::Tensor& gram, const at::Tensor& centered) const {
    at::bmm_out(gram, centered, centered.transpose(1, 2));
  }

 private:
  c10::cuda::CUDAStream stream_;
};

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CUDA, library) { vitcop::glue::implement<CudaLauncher>(library); }
