// Index arithmetic of gather_patches: what its kernels for the CPU and for GPUs share.
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

// What is no longer than this may be indexed in 32 bits: three such numbers make a sum.
constexpr int64_t kMost32 = int64_t{1} << 29;

struct Volume {
  int64_t channels;
  int64_t size[kSpatialAxes];
  bool channels_last;

  // Elements from the start of the memory to one cell.
  template <typename Int>
  KRYPTON_HOST_DEVICE constexpr Int at(Int row, Int channel, Int z, Int y, Int x) const {
    const Int count = static_cast<Int>(channels), depth = static_cast<Int>(size[0]),
              height = static_cast<Int>(size[1]), width = static_cast<Int>(size[2]);
    return channels_last ? (((row * depth + z) * height + y) * width + x) * count + channel
                         : (((row * count + channel) * depth + z) * height + y) * width + x;
  }
};

// gather_patches for a batch of windows: plain numbers and places in memory.
struct Gather {
  Volume base_volume;
  Volume patch_volume;
  Volume block_volume;
  const char* base;
  const char* patch;
  char* block;
  const int64_t* image;
  const int64_t* patch_offset;
  const int64_t* patch_extent;  // null: all of the patch
  const int64_t* read_offset;
  int64_t windows;
  int64_t images;
  int64_t rank;
  int64_t element_size;
  uint64_t fill;  // the bits of an element

  KRYPTON_HOST_DEVICE constexpr AxisCut cut(int64_t window, int axis) const {
    const int64_t given = axis - (kSpatialAxes - rank);
    const int64_t index = window * rank + given;
    return cut_axis(base_volume.size[axis],
                    given < 0 || !patch_extent ? patch_volume.size[axis] : patch_extent[index],
                    block_volume.size[axis], given < 0 ? 0 : patch_offset[index],
                    given < 0 ? 0 : read_offset[index]);
  }
};

}  // namespace captum_krypton
