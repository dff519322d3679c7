// The cells that a window sees.
#pragma once

#include "storage.h"

namespace captum_krypton {
namespace {

// One row of the volume as a window sees it. Columns are counted from the block's first.
template <typename T>
struct Row {
  const T* base;
  const T* patch;
  const T* zeros;
  int64_t channels;
  int64_t x, width;              // of the block's first column in the volume, and the volume's
  int64_t patch_x, patch_width;  // of the patch in the volume; nowhere outside of it

  KRYPTON_INLINE const T* at(int64_t column) const {
    const int64_t u = x + column;
    const int64_t q = u - patch_x;
    if (static_cast<uint64_t>(q) < static_cast<uint64_t>(patch_width)) {
      return patch + q * channels;
    }
    return static_cast<uint64_t>(u) < static_cast<uint64_t>(width) ? base + u * channels : zeros;
  }
};

// One plane of the volume as a window sees it.
template <typename T>
struct View {
  Row<T> first;    // all rows are like it
  int64_t height;  // of the volume; none outside of it
  int64_t y;       // of the block's first row in the volume
  int64_t patch_y, patch_height;
  int64_t pitch;  // numbers from one row of the patch to the next

  KRYPTON_INLINE Row<T> row(int64_t number) const {
    Row<T> found = first;
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

// Planes are counted from the block's first.
template <typename T>
KRYPTON_INLINE View<T> view(const Source& source, int64_t window, int64_t plane) {
  const int64_t* const offset = source.patch_offset + 3 * window;
  const int64_t* const extent = source.patch_extent + 3 * window;
  const int64_t* const read = source.read_offset + 3 * window;
  const int64_t skipped = offset[2] < 0 ? -offset[2] : 0;
  int64_t columns = least(extent[2], source.width - offset[2]) - skipped;
  columns = columns < 0 ? 0 : columns;
  int64_t w = read[0] + plane, p = w - offset[0];
  int64_t height = source.height, patch_height = extent[1];
  if (static_cast<uint64_t>(w) >= static_cast<uint64_t>(source.depth)) {
    w = p = height = patch_height = 0;
  } else if (static_cast<uint64_t>(p) >= static_cast<uint64_t>(extent[0])) {
    p = patch_height = 0;
  }
  const int64_t base_plane = source.image[window] * source.depth + w;
  const int64_t patch_plane = window * source.patch_depth + p;
  return {{static_cast<const T*>(source.base) +
               base_plane * source.height * source.width * source.channels,
           static_cast<const T*>(source.patch) +
               (patch_plane * source.patch_height * source.patch_width + skipped) * source.channels,
           static_cast<const T*>(source.zeros), source.channels, read[2], source.width,
           offset[2] + skipped, columns},
          height,
          read[1],
          offset[1],
          patch_height,
          source.patch_width * source.channels};
}

}  // namespace
}  // namespace captum_krypton
