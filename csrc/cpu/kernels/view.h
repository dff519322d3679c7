// The cells that a window sees.
#pragma once

#include "vector.h"

namespace captum_krypton {
namespace {

// One row of the volume as a window sees it. Columns are counted from the block's first.
struct Row {
  const float* base;
  const float* patch;
  const float* zeros;
  int64_t channels;
  int64_t x, width;              // of the block's first column in the volume, and the volume's
  int64_t patch_x, patch_width;  // of the patch in the volume; nowhere outside of it

  KRYPTON_INLINE const float* at(int64_t column) const {
    const int64_t u = x + column;
    const int64_t q = u - patch_x;
    if (static_cast<uint64_t>(q) < static_cast<uint64_t>(patch_width)) {
      return patch + q * channels;
    }
    return static_cast<uint64_t>(u) < static_cast<uint64_t>(width) ? base + u * channels : zeros;
  }
};

// The window's part of a source.
struct View {
  Row first;       // all rows are like it
  int64_t height;  // of the volume
  int64_t y;       // of the block's first row in the volume
  int64_t patch_y, patch_height;
  int64_t pitch;  // numbers from one row of the patch to the next

  KRYPTON_INLINE Row row(int64_t number) const {
    Row found = first;
    const int64_t v = y + number;
    const int64_t p = v - patch_y;
    if (static_cast<uint64_t>(v) >= static_cast<uint64_t>(height)) {
      found.width = found.patch_width = 0;
    } else if (static_cast<uint64_t>(p) >= static_cast<uint64_t>(patch_height)) {
      found.patch_width = 0;
    } else {
      found.patch += p * pitch;
    }
    found.base += found.width ? v * found.width * found.channels : 0;
    return found;
  }
};

KRYPTON_INLINE View view(const Source& source, int64_t window) {
  const int64_t offset = source.patch_offset[2 * window + 1];
  const int64_t skipped = offset < 0 ? -offset : 0;
  int64_t columns = least(source.patch_extent[2 * window + 1], source.width - offset) - skipped;
  columns = columns < 0 ? 0 : columns;
  return {{source.base + source.image[window] * source.height * source.width * source.channels,
           source.patch +
               (window * source.patch_height * source.patch_width + skipped) * source.channels,
           source.zeros, source.channels, source.read_offset[2 * window + 1], source.width,
           offset + skipped, columns},
          source.height,
          source.read_offset[2 * window],
          source.patch_offset[2 * window],
          source.patch_extent[2 * window],
          source.patch_width * source.channels};
}

}  // namespace
}  // namespace captum_krypton
