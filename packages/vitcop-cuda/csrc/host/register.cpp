// The device's lines on the host, as operators of their own: `vitcop_lines` with one thread a block, `vitcop_threads`
// with several; and the Python module by which tests ask what was launched. For tests only; no wheel carries them.
#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "glue/register.h"
#include "host/launch.h"

namespace {

// The kernels that were launched, in order. Written by the thread that calls operators, and read by the same one.
thread_local std::vector<std::string> launched;

std::string name_of(const std::type_info& type) {
  char* readable = abi::__cxa_demangle(type.name(), nullptr, nullptr, nullptr);
  std::string name = readable;
  std::free(readable);
  return name;
}

template <int64_t kThreads>
struct HostLauncher {
  explicit HostLauncher(const torch::stable::Tensor&) {}

  template <class Kernel>
  void operator()(const Kernel& kernel) const {
    launched.push_back(name_of(typeid(Kernel)));
    vitcop::host::run(kernel, kThreads);
  }
};

const char* const kSchemas[] = {
    "cls_saliency(Tensor query_cls, Tensor keys, float scale) -> Tensor",
    "received_attention(Tensor queries, Tensor keys, float scale, Tensor? lengths=None) -> Tensor",
    "top_tokens(Tensor saliency, int k, bool smallest=False, Tensor? lengths=None, Tensor? counts=None) -> Tensor",
    "vic(Tensor features, Tensor positions, int num_centers, float cutoff_distance=8.0, float spatial_threshold=0.6, "
    "Tensor? lengths=None, Tensor? counts=None, Tensor? cutoffs=None) "
    "-> (Tensor labels, Tensor centers, Tensor density, Tensor distance, Tensor importance)",
    "key_norm(Tensor keys) -> Tensor",
    "co_prune(Tensor hidden, Tensor labels, Tensor key_norm, int budget, int num_clusters, Tensor? lengths=None, "
    "Tensor? counts=None) -> (Tensor hidden, Tensor index, Tensor is_merged, Tensor slot)",
    "gather_tokens(Tensor[] tensors, Tensor index) -> Tensor[]",
};

}  // namespace

STABLE_TORCH_LIBRARY(vitcop_lines, library) {
  for (const char* schema : kSchemas) library.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(vitcop_lines, CPU, library) { vitcop::glue::implement<HostLauncher<1>>(library); }

STABLE_TORCH_LIBRARY(vitcop_threads, library) {
  for (const char* schema : kSchemas) library.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(vitcop_threads, CPU, library) { vitcop::glue::implement<HostLauncher<3>>(library); }

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("launched", [] { return std::exchange(launched, {}); }, "The kernels launched since the last call, by name.");
}
