#include "instruction_set.h"

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <string>

namespace captum_krypton {
namespace {

bool has_avx2() {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__) && defined(__GNUC__)
  return has_avx2() && __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

const Kernels* choose_kernels() {
  const char* const asked = std::getenv("KRYPTON_KERNELS");
  const std::string wanted = asked ? asked : "";
  for (const Kernels* const kernels : {has_avx512() ? avx512_kernels() : nullptr,
                                       has_avx2() ? avx2_kernels() : nullptr, portable_kernels()}) {
    if (kernels && (wanted.empty() || wanted == kernels->name)) {
      return kernels;
    }
  }
  STD_TORCH_CHECK(wanted.empty(), "KRYPTON_KERNELS is ", wanted,
                  ", which this processor or this build does not have");
  return nullptr;
}

}  // namespace

const Kernels* find_kernels() {
  static const Kernels* const found = choose_kernels();
  return found;
}

const Kernels& need_kernels() {
  const Kernels* const found = find_kernels();
  STD_TORCH_CHECK(found, "these kernels were built by a compiler without vector types");
  return *found;
}

}  // namespace captum_krypton
