// gather_patches by units: what one thread of a GPU moves at a time, at most 16 bytes.
//
// With the channels last, a unit is a part of a cell's channels, as large as they and the places in
// memory allow; otherwise it is one element. Neighbouring threads move neighbouring units.
#pragma once

#include <cstdint>
#include <cstring>

#include "patch_index.h"

namespace captum_krypton {

struct alignas(16) Unit16 {
  uint64_t words[2];
};

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

// All units of a result, numbered as they lie in memory.
template <typename Index>
struct GatherUnits {
  Gather gather;
  Index count;
  Divisor<Index> parts;  // units of a cell; 1 unless the channels are last
  Divisor<Index> width, height, depth;
  Divisor<Index> planes;  // channels, unless they are last
  Unit16 fill;

  GatherUnits(const Gather& given, int64_t unit_bytes)
      : gather(given),
        count(static_cast<Index>(units_of(given, unit_bytes))),
        parts(parts_of(given, unit_bytes)),
        width(given.block_volume.size[2]),
        height(given.block_volume.size[1]),
        depth(given.block_volume.size[0]),
        planes(given.block_volume.channels_last ? 1 : given.block_volume.channels) {
    auto* const bytes = reinterpret_cast<char*>(&fill);
    std::memset(bytes, 0, sizeof(fill));
    const int64_t element = given.element_size < 8 ? given.element_size : 8;
    for (int64_t at = 0; given.fill != 0 && at < 16; at += element) {
      std::memcpy(bytes + at, &given.fill, static_cast<size_t>(element));
    }
  }

  static int64_t parts_of(const Gather& gather, int64_t unit_bytes) {
    const Volume& block = gather.block_volume;
    return block.channels_last ? block.channels * gather.element_size / unit_bytes : 1;
  }

  static int64_t units_of(const Gather& gather, int64_t unit_bytes) {
    const Volume& block = gather.block_volume;
    const int64_t cells = gather.windows * block.size[0] * block.size[1] * block.size[2];
    return cells * (block.channels_last ? parts_of(gather, unit_bytes) : block.channels);
  }
};

// The most bytes that divide a cell's channels and every place that a unit may start at.
inline int64_t unit_bytes_of(const Gather& gather) {
  if (!gather.block_volume.channels_last) {
    return gather.element_size;
  }
  const auto places = reinterpret_cast<uintptr_t>(gather.base) |
                      reinterpret_cast<uintptr_t>(gather.patch) |
                      reinterpret_cast<uintptr_t>(gather.block) |
                      static_cast<uintptr_t>(gather.block_volume.channels * gather.element_size);
  int64_t bytes = 16;
  while (places % static_cast<uintptr_t>(bytes) != 0) {
    bytes /= 2;
  }
  return bytes;
}

// Whether int32_t can index the result, the base and the patches.
inline bool fits_32_bits(const Gather& gather) {
  const auto fits = [](const Volume& volume, int64_t rows) {
    return rows * volume.channels * volume.size[0] * volume.size[1] * volume.size[2] <= kMost32;
  };
  return fits(gather.block_volume, gather.windows) && fits(gather.base_volume, gather.images) &&
         fits(gather.patch_volume, gather.windows);
}

// Writes one unit of the result; `Int` indexes, `Index` is its unsigned twin. An image that the
// base does not have reads another one: no device can say so without being waited for.
template <typename Unit, typename Int, typename Index>
KRYPTON_HOST_DEVICE void gather_unit(const GatherUnits<Index>& units, Index number) {
  const Gather& gather = units.gather;
  const auto next = [&number](const Divisor<Index>& divisor) {
    const Index quotient = divisor.divide(number);
    const Index rest = number - quotient * divisor.divisor;
    number = quotient;
    return static_cast<Int>(rest);
  };
  const Int part = next(units.parts);
  const Int x = next(units.width);
  const Int y = next(units.height);
  const Int z = next(units.depth);
  const Int channel = next(units.planes);
  const Int window = static_cast<Int>(number);

  const auto bytes = [&](Int element) {
    return static_cast<int64_t>(element) * gather.element_size +
           static_cast<int64_t>(part) * static_cast<int64_t>(sizeof(Unit));
  };
  const AxisPlace<Int> in_z = gather.place(window, 0, z);
  const AxisPlace<Int> in_y = gather.place(window, 1, y);
  const AxisPlace<Int> in_x = gather.place(window, 2, x);
  Unit value;
  if (!in_z.inside || !in_y.inside || !in_x.inside) {
    value = *reinterpret_cast<const Unit*>(&units.fill);
  } else if (in_z.covered && in_y.covered && in_x.covered) {
    value = *reinterpret_cast<const Unit*>(
        gather.patch + bytes(gather.patch_volume.at(window, channel, in_z.at_patch, in_y.at_patch,
                                                    in_x.at_patch)));
  } else {
    const Int image = static_cast<Int>(clamp(gather.image[window], 0, gather.images - 1));
    value = *reinterpret_cast<const Unit*>(
        gather.base +
        bytes(gather.base_volume.at(image, channel, in_z.at_base, in_y.at_base, in_x.at_base)));
  }
  *reinterpret_cast<Unit*>(gather.block + bytes(gather.block_volume.at(window, channel, z, y, x))) =
      value;
}

}  // namespace captum_krypton
