// vitcop_cuda._cuda: the CUDA kernels, and how they were built.
#include "python/module.h"

PyMODINIT_FUNC PyInit__cuda() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return vitcop::python::make_module(
      definition, {{"CUDA_VERSION", VITCOP_CUDA_VERSION}, {"ARCHITECTURES", VITCOP_ARCHITECTURES}});
}
