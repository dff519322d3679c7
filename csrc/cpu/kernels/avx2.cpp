// The kernels for x86-64 processors with AVX2, FMA and F16C.

#include "../kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define KRYPTON_LANES 8
#define KRYPTON_ROWS 6
#define KRYPTON_NAME "avx2"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "table.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace captum_krypton {

const Kernels* avx2_kernels() { return &kKernels; }

}  // namespace captum_krypton

#else

namespace captum_krypton {

const Kernels* avx2_kernels() { return nullptr; }

}  // namespace captum_krypton

#endif
