// Lets a library of kernels be imported as the module KRYPTON_MODULE; the kernels register
// themselves.
#pragma once

#include <Python.h>

#define KRYPTON_PASTE(a, b) a##b
#define KRYPTON_INIT(name) KRYPTON_PASTE(PyInit_, name)
#define KRYPTON_QUOTE(name) #name
#define KRYPTON_STRING(name) KRYPTON_QUOTE(name)

PyMODINIT_FUNC KRYPTON_INIT(KRYPTON_MODULE)(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, KRYPTON_STRING(KRYPTON_MODULE), nullptr,
                                   -1, nullptr};
  return PyModule_Create(&definition);
}
