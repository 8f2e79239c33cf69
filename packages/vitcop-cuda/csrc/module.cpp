// The Python module. Importing it registers the kernels; what it has to say is how it was built.
#include <pybind11/pybind11.h>
#include <torch/version.h>

PYBIND11_MODULE(_kernels, module) {
  module.attr("TORCH_VERSION") = TORCH_VERSION;
  module.attr("COMPILER") = "C++ " __VERSION__;
  module.attr("NO_CUDA_BECAUSE") = VITCOP_NO_CUDA_BECAUSE;
#if defined(VITCOP_CUDA_VERSION)
  module.attr("CUDA_VERSION") = VITCOP_CUDA_VERSION;
  module.attr("ARCHITECTURES") = VITCOP_ARCHITECTURES;
#else
  module.attr("CUDA_VERSION") = pybind11::none();
  module.attr("ARCHITECTURES") = "";
#endif
}
