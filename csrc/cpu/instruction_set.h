// The kernels that this processor runs.
#pragma once

#include "kernels.h"

namespace captum_krypton {

// The best ones, or those that KRYPTON_KERNELS names; null where the compiler could make none.
const Kernels* find_kernels();

// The same, where there are any.
const Kernels& need_kernels();

}  // namespace captum_krypton
