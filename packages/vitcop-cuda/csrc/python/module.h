// A Python module of constants, within Python's limited API: one file for every Python from 3.11 on. Importing it
// registers the kernels that are linked into it.
#pragma once

#include <Python.h>

namespace vitcop::python {

struct Constant {
  const char* name;
  const char* text;
};

template <size_t kCount>
PyObject* make_module(PyModuleDef& definition, const Constant (&constants)[kCount]) {
  PyObject* module = PyModule_Create(&definition);
  for (const Constant& constant : constants) {
    if (module != nullptr && PyModule_AddStringConstant(module, constant.name, constant.text) != 0) {
      Py_DECREF(module);
      module = nullptr;
    }
  }
  return module;
}

}  // namespace vitcop::python
