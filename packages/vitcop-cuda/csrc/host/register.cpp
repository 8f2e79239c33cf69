// The device's lines on the host, as operators of their own: `vitcop_lines` with one thread a block, `vitcop_threads`
// with several. For tests only; no wheel carries them.
#include <ATen/ops/bmm.h>
#include <torch/library.h>

#include "glue/register.h"
#include "host/launch.h"

namespace {

template <int64_t kThreads>
struct HostLauncher {
  explicit HostLauncher(at::Device) {}

  template <class Kernel>
  void operator()(const Kernel& kernel) const {
    vitcop::host::run(kernel, kThreads);
  }

  void multiply(at::Tensor& gram, const at::Tensor& centered) const {
    at::bmm_out(gram, centered, centered.transpose(1, 2));
  }
};

const char* const kSchemas[] = {
    "cls_saliency(Tensor query_cls, Tensor keys, float scale) -> Tensor",
    "top_tokens(Tensor saliency, int k, bool smallest=False, Tensor? lengths=None, Tensor? counts=None) -> Tensor",
    "vic(Tensor features, Tensor positions, int num_centers, float cutoff_distance=8.0, float spatial_threshold=0.6, "
    "Tensor? lengths=None, Tensor? counts=None) "
    "-> (Tensor labels, Tensor centers, Tensor density, Tensor distance, Tensor importance)",
    "key_norm(Tensor keys) -> Tensor",
    "co_prune(Tensor hidden, Tensor labels, Tensor key_norm, int budget, int num_clusters, Tensor? lengths=None, "
    "Tensor? counts=None) -> (Tensor hidden, Tensor index, Tensor is_merged, Tensor slot)",
    "gather_tokens(Tensor[] tensors, Tensor index) -> Tensor[]",
};

}  // namespace

TORCH_LIBRARY(vitcop_lines, library) {
  for (const char* schema : kSchemas) library.def(schema);
}

TORCH_LIBRARY_IMPL(vitcop_lines, CPU, library) { vitcop::glue::implement<HostLauncher<1>>(library); }

TORCH_LIBRARY(vitcop_threads, library) {
  for (const char* schema : kSchemas) library.def(schema);
}

TORCH_LIBRARY_IMPL(vitcop_threads, CPU, library) { vitcop::glue::implement<HostLauncher<3>>(library); }
