// The kernels for x86-64 processors with AVX-512.

#include "../kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define KRYPTON_LANES 16
#define KRYPTON_ROWS 12
#define KRYPTON_NAME "avx512"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma,f16c")
#endif

#include "table.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace captum_krypton {

const Kernels* avx512_kernels() { return &kKernels; }

}  // namespace captum_krypton

#else

namespace captum_krypton {

const Kernels* avx512_kernels() { return nullptr; }

}  // namespace captum_krypton

#endif
