// Calls of work for numbers of rows or outputs that the compiler knows.
#pragma once

#include "vector.h"

namespace captum_krypton {
namespace {

constexpr int power_of_two_below(int rows) {
  int power = 1;
  while (2 * power < rows) {
    power *= 2;
  }
  return power;
}

// Calls `work.template run<n>(row)` for all rows from `row` to `rows`, n of them at a time: as many
// as fill the registers, then powers of two.
template <int Rows, typename Work>
KRYPTON_INLINE void for_rows(int64_t row, int64_t rows, const Work& work) {
  for (; row + Rows <= rows; row += Rows) {
    work.template run<Rows>(row);
  }
  if constexpr (Rows > 1) {
    for_rows<power_of_two_below(Rows)>(row, rows, work);
  }
}

// Calls `work.template run<m>()` for an axis with m outputs, at most Most.
template <int Most, typename Work>
KRYPTON_INLINE void for_outputs(int outputs, const Work& work) {
  if constexpr (Most == 0) {
    work.template run<0>();
  } else if (outputs == Most) {
    work.template run<Most>();
  } else {
    for_outputs<Most - 1>(outputs, work);
  }
}

}  // namespace
}  // namespace captum_krypton
