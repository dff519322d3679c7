// Index arithmetic for the threads of a GPU: a block of threads works for one window, whose place
// each thread looks up once.
#pragma once

#include <cstdint>

#include "../patch_index.h"

namespace captum_krypton {

// Division by a number that is known before the kernel starts.
template <typename Index>
struct Divisor {
  Index divisor;

  explicit Divisor(int64_t value) : divisor(static_cast<Index>(value)) {}
  KRYPTON_HOST_DEVICE Index divide(Index number) const { return number / divisor; }
};

// For numbers below 2^31: a product and a shift (Granlund and Montgomery, 1994, Figure 4.1).
template <>
struct Divisor<uint32_t> {
  uint32_t divisor, factor;
  uint32_t shift = 0;

  explicit Divisor(int64_t value) : divisor(static_cast<uint32_t>(value)) {
    while ((uint64_t{1} << shift) < divisor) {
      ++shift;
    }
    const uint64_t rest = (uint64_t{1} << shift) - divisor;
    factor = static_cast<uint32_t>((rest << 32) / divisor + 1);
  }
  KRYPTON_HOST_DEVICE uint32_t divide(uint32_t number) const {
    const auto high = static_cast<uint32_t>((uint64_t{number} * factor) >> 32);
    return (high + number) >> shift;
  }
};

// The rest of `number`, which becomes the quotient.
template <typename Index>
KRYPTON_HOST_DEVICE Index split(Index& number, const Divisor<Index>& divisor) {
  const Index quotient = divisor.divide(number);
  const Index rest = number - quotient * divisor.divisor;
  number = quotient;
  return rest;
}

// How the results of all windows are dealt out: `in_block` of one window's to a block of threads.
template <typename Index>
struct Deal {
  Index of_window, in_block, blocks;
  Divisor<Index> blocks_of_window;

  Deal(int64_t windows, int64_t results, int64_t most)
      : of_window(static_cast<Index>(results)),
        in_block(static_cast<Index>(most)),
        blocks(static_cast<Index>(windows * ((results + most - 1) / most))),
        blocks_of_window((results + most - 1) / most) {}
};

// Where a window's patch and its read-in block lie, along each axis. `Int` is int64_t, or int32_t
// where nothing is longer than kMost32: then the sums below cannot overflow.
template <typename Int>
struct WindowPlace {
  Int read[kSpatialAxes];   // the block's first cell in the volume
  Int patch[kSpatialAxes];  // the patch's first cell in the volume
  Int cells[kSpatialAxes];  // of the patch
  int64_t window, image;

  // An image that the base does not have reads another one: no device can say so without being
  // waited for.
  KRYPTON_HOST_DEVICE WindowPlace(const Gather& gather, int64_t number)
      : window(number), image(clamp(gather.image[number], 0, gather.images - 1)) {
    constexpr int64_t kFar = sizeof(Int) == 4 ? kMost32 : int64_t{1} << 60;
    for (int axis = 0; axis < kSpatialAxes; ++axis) {
      read[axis] = patch[axis] = 0;  // of an axis of size 1 that was put in front
      cells[axis] = static_cast<Int>(gather.patch_volume.size[axis]);
      const int64_t given = axis - (kSpatialAxes - gather.rank);
      if (given >= 0) {
        const int64_t index = number * gather.rank + given;
        read[axis] = static_cast<Int>(clamp(gather.read_offset[index], -kFar, kFar));
        patch[axis] = static_cast<Int>(clamp(gather.patch_offset[index], -kFar, kFar));
        if (gather.patch_extent != nullptr) {
          cells[axis] = static_cast<Int>(gather.patch_extent[index]);
        }
      }
    }
  }

  KRYPTON_HOST_DEVICE bool covers(int axis, Int cell) const {
    return cell >= patch[axis] && cell - patch[axis] < cells[axis];
  }
};

// Whether int32_t can index the result, the base and the patches.
inline bool fits_32_bits(const Gather& gather) {
  const auto fits = [](const Volume& volume, int64_t rows) {
    return rows * volume.channels * volume.size[0] * volume.size[1] * volume.size[2] <= kMost32;
  };
  return fits(gather.block_volume, gather.windows) && fits(gather.base_volume, gather.images) &&
         fits(gather.patch_volume, gather.windows);
}

}  // namespace captum_krypton
