// Index arithmetic of gather_patches, for host and device alike.
//
// A volume is (rows, channels, depth, height, width) in memory, or with the channels last; fewer
// spatial axes are padded in front with axes of size 1. All arithmetic is in 64 bits.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define KRYPTON_HOST_DEVICE __host__ __device__
#else
#define KRYPTON_HOST_DEVICE
#endif

namespace captum_krypton {

constexpr int kSpatialAxes = 3;

KRYPTON_HOST_DEVICE constexpr int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : (value > high ? high : value);
}

// One axis of one window's read-in block, cut into runs of cells that come from one place:
// padding, base, patch, base, padding. Begins and ends are cells of the block and in order.
struct AxisCut {
  int64_t inside_begin;
  int64_t patch_begin;
  int64_t patch_end;
  int64_t inside_end;
  // Added to a cell of the block: its cell in the base, its cell in the patch.
  int64_t to_base;
  int64_t to_patch;

  KRYPTON_HOST_DEVICE constexpr bool inside(int64_t cell) const {
    return cell >= inside_begin && cell < inside_end;
  }
  KRYPTON_HOST_DEVICE constexpr bool covered(int64_t cell) const {
    return cell >= patch_begin && cell < patch_end;
  }
};

KRYPTON_HOST_DEVICE constexpr AxisCut cut_axis(int64_t volume_size, int64_t patch_size,
                                               int64_t read_size, int64_t patch_offset,
                                               int64_t read_offset) {
  // No volume reaches this far, so a clamped offset means the same and cannot overflow below.
  constexpr int64_t kFar = int64_t{1} << 60;
  const int64_t read = clamp(read_offset, -kFar, kFar);
  const int64_t patch = clamp(patch_offset, -kFar, kFar);
  const int64_t inside_begin = clamp(-read, 0, read_size);
  const int64_t inside_end = clamp(volume_size - read, inside_begin, read_size);
  const int64_t patch_begin = clamp(patch - read, inside_begin, inside_end);
  const int64_t patch_end = clamp(patch - read + patch_size, patch_begin, inside_end);
  return {inside_begin, patch_begin, patch_end, inside_end, read, read - patch};
}

struct Volume {
  int64_t channels;
  int64_t size[kSpatialAxes];
  bool channels_last;

  // Elements from the start of the memory to one cell.
  KRYPTON_HOST_DEVICE constexpr int64_t at(int64_t row, int64_t channel, int64_t z, int64_t y,
                                           int64_t x) const {
    return channels_last ? (((row * size[0] + z) * size[1] + y) * size[2] + x) * channels + channel
                         : (((row * channels + channel) * size[0] + z) * size[1] + y) * size[2] + x;
  }
};

}  // namespace captum_krypton
