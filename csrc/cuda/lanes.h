// Numbers that a thread reads or writes at once.
#pragma once

namespace captum_krypton {

template <typename Scalar, int kLanes>
struct alignas(sizeof(Scalar) * kLanes) Lanes {
  Scalar values[kLanes];
};

}  // namespace captum_krypton
