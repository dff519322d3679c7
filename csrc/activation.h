// What is done to an output before it is clamped.
#pragma once

#include <cstdint>

namespace captum_krypton {

// The numbers are those of `ACTIVATIONS` in Python.
enum class Activation : int64_t { kNone, kGelu, kSilu, kHardswish, kPrelu };
constexpr int64_t kActivations = 5;

}  // namespace captum_krypton
