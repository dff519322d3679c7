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

template <typename T>
constexpr StorageKernels storage_kernels() {
  return {&winograd<T>, &direct<T>, &narrow<T>, &depthwise<T>, &maximum<T>, &average<T>, &join<T>};
}

// In the order of `Storage`.
constexpr Kernels kKernels{
    KRYPTON_NAME,
    kPanel,
    kLanes,
    {storage_kernels<float>(), storage_kernels<Bfloat16>(), storage_kernels<Half>()}};

}  // namespace
}  // namespace captum_krypton
