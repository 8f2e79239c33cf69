// vitcop_cuda._cpu: the CPU kernels, and how they were built.
#include "python/module.h"

#include <torch/headeronly/version.h>

PyMODINIT_FUNC PyInit__cpu() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return vitcop::python::make_module(definition, {{"TORCH_VERSION", TORCH_VERSION},
                                                  {"COMPILER", "C++ " __VERSION__},
                                                  {"NO_CUDA_BECAUSE", VITCOP_NO_CUDA_BECAUSE}});
}
