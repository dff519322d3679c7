// gather_patches by units: what one thread of a GPU moves at a time, at most 16 bytes.
//
// With the channels last, a unit is a part of a cell's channels, as large as they and the places in
// memory allow; otherwise it is one element. Neighbouring threads move neighbouring units.
#pragma once

#include <cstdint>
#include <cstring>

#include "window_place.h"

namespace captum_krypton {

struct alignas(16) Unit16 {
  uint64_t words[2];
};

// The units of each window's block, numbered as they lie in memory.
template <typename Index>
struct GatherUnits {
  Gather gather;
  Divisor<Index> parts;  // units of a cell; 1 unless the channels are last
  Divisor<Index> width, height, depth;
  Deal<Index> deal;
  Unit16 fill;

  GatherUnits(const Gather& given, int64_t unit_bytes, int64_t in_block)
      : gather(given),
        parts(parts_of(given, unit_bytes)),
        width(given.block_volume.size[2]),
        height(given.block_volume.size[1]),
        depth(given.block_volume.size[0]),
        deal(given.windows, units_of(given, unit_bytes), in_block) {
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

  // Of one window.
  static int64_t units_of(const Gather& gather, int64_t unit_bytes) {
    const Volume& block = gather.block_volume;
    const int64_t cells = block.size[0] * block.size[1] * block.size[2];
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

// Reads one unit of a window's block; `Int` indexes, `Index` is its unsigned twin.
template <typename Unit, typename Int, typename Index>
KRYPTON_HOST_DEVICE Unit read_unit(const GatherUnits<Index>& units, const WindowPlace<Int>& place,
                                   Index number) {
  const Gather& gather = units.gather;
  const auto part = static_cast<Int>(split(number, units.parts));
  Int cell[kSpatialAxes];
  cell[2] = place.read[2] + static_cast<Int>(split(number, units.width));
  cell[1] = place.read[1] + static_cast<Int>(split(number, units.height));
  cell[0] = place.read[0] + static_cast<Int>(split(number, units.depth));
  bool inside = true, covered = true;
  for (int axis = 0; axis < kSpatialAxes; ++axis) {
    inside &= cell[axis] >= 0 && cell[axis] < static_cast<Int>(gather.base_volume.size[axis]);
    covered &= place.covers(axis, cell[axis]);
  }
  if (!inside) {
    return *reinterpret_cast<const Unit*>(&units.fill);
  }
  const Volume& volume = covered ? gather.patch_volume : gather.base_volume;
  auto at = static_cast<Int>(number);  // the channel, unless the channels are last
  for (int axis = 0; axis < kSpatialAxes; ++axis) {
    const Int first = covered ? place.patch[axis] : 0;
    at = at * static_cast<Int>(volume.size[axis]) + (cell[axis] - first);
  }
  at = at * static_cast<Int>(units.parts.divisor) + part;
  const char* const rows = covered ? gather.patch : gather.base;
  const int64_t row = covered ? place.window : place.image;
  const int64_t elements = volume.channels * volume.size[0] * volume.size[1] * volume.size[2];
  return reinterpret_cast<const Unit*>(rows + row * elements * gather.element_size)[at];
}

}  // namespace captum_krypton
