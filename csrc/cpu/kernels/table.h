// The kernels of one instruction set, see vector.h.
#pragma once

#include "depthwise.h"
#include "direct.h"
#include "join.h"
#include "narrow.h"
#include "pool.h"
#include "winograd.h"

namespace captum_krypton {
namespace {

constexpr Kernels kKernels{KRYPTON_NAME, kPanel,     kLanes,   &winograd, &direct,
                           &narrow,      &depthwise, &maximum, &average,  &join};

}  // namespace
}  // namespace captum_krypton
