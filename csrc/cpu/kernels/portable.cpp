// The kernels for what every processor of the architecture has: SSE2 on x86-64, NEON on 64-bit
// Arm.

#include "../kernels.h"

#if defined(__GNUC__)

#define KRYPTON_LANES 4
#if defined(__aarch64__)
#define KRYPTON_ROWS 8
#else
#define KRYPTON_ROWS 4
#endif
#define KRYPTON_NAME "portable"

#include "table.h"

namespace captum_krypton {

const Kernels* portable_kernels() { return &kKernels; }

}  // namespace captum_krypton

#else

namespace captum_krypton {

const Kernels* portable_kernels() { return nullptr; }

}  // namespace captum_krypton

#endif
