// What is done to an output before it is clamped.
#pragma once

#include <cstdint>

namespace captum_krypton {

// The numbers are those of `ACTIVATIONS` in Python.
enum class Activation : int64_t { kNone, kGelu, kSilu, kHardswish };
constexpr int64_t kActivations = 4;

}  // namespace captum_krypton
