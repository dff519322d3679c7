// Numbers that a thread reads or writes at once.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace captum_krypton {

template <typename Scalar, int kLanes>
struct alignas(sizeof(Scalar) * kLanes) Lanes {
  Scalar values[kLanes];
};

// Whether 16 bytes can be read at each of some places; null is one.
inline bool are_aligned(std::initializer_list<const void*> places) {
  for (const void* const place : places) {
    if (reinterpret_cast<uintptr_t>(place) % 16 != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace captum_krypton
