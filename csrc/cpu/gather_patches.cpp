// gather_patches on the CPU: every row of a read-in block is at most five copies or fills.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "../gather.h"
#include "arena.h"

namespace captum_krypton {
namespace {

// Bytes that make it worth a thread's while to wake up.
constexpr int64_t kGrainBytes = 32 * 1024;

struct Fill {
  uint64_t bits;
  size_t element_size;

  void write(char* out, int64_t elements) const {
    const size_t count = static_cast<size_t>(elements);
    if (bits == 0) {
      std::memset(out, 0, count * element_size);
    } else if (element_size == 1) {
      std::memset(out, static_cast<int>(bits), count);
    } else if (element_size == 2) {
      std::fill_n(reinterpret_cast<uint16_t*>(out), count, static_cast<uint16_t>(bits));
    } else if (element_size == 4) {
      std::fill_n(reinterpret_cast<uint32_t*>(out), count, static_cast<uint32_t>(bits));
    } else {
      std::fill_n(reinterpret_cast<uint64_t*>(out), count, bits);
    }
  }
};

struct Job : Gather {
  void cut_all(int64_t window, AxisCut (&cuts)[kSpatialAxes]) const {
    for (int axis = 0; axis < kSpatialAxes; ++axis) {
      cuts[axis] = cut(window, axis);
    }
  }

  // Writes the cells (window, channel, z, y, :) of the result, and all channels of them if last.
  void write_row(int64_t window, int64_t channel, int64_t z, int64_t y,
                 const AxisCut (&cuts)[kSpatialAxes]) const {
    const auto& [cut_z, cut_y, cut_x] = cuts;
    const Fill padding{fill, static_cast<size_t>(element_size)};
    const int64_t unit = block_volume.channels_last ? block_volume.channels : 1;
    const int64_t width = block_volume.size[2];
    char* const out = block + block_volume.at<int64_t>(window, channel, z, y, 0) * element_size;
    if (!cut_z.inside(z) || !cut_y.inside(y)) {
      padding.write(out, width * unit);
      return;
    }
    const auto pad = [&](int64_t begin, int64_t end) {
      if (begin < end) {
        padding.write(out + begin * unit * element_size, (end - begin) * unit);
      }
    };
    const auto copy = [&](const char* from, int64_t element, int64_t begin, int64_t end) {
      std::memcpy(out + begin * unit * element_size, from + element * element_size,
                  static_cast<size_t>((end - begin) * unit * element_size));
    };
    // Where there is nothing to copy, the place may be too far to be a number.
    const auto copy_base = [&](int64_t begin, int64_t end) {
      if (begin < end) {
        copy(base,
             base_volume.at<int64_t>(image[window], channel, z + cut_z.to_base, y + cut_y.to_base,
                                     begin + cut_x.to_base),
             begin, end);
      }
    };
    pad(0, cut_x.inside_begin);
    if (cut_z.covered(z) && cut_y.covered(y)) {
      copy_base(cut_x.inside_begin, cut_x.patch_begin);
      if (cut_x.patch_begin < cut_x.patch_end) {
        copy(patch,
             patch_volume.at<int64_t>(window, channel, z + cut_z.to_patch, y + cut_y.to_patch,
                                      cut_x.patch_begin + cut_x.to_patch),
             cut_x.patch_begin, cut_x.patch_end);
      }
      copy_base(cut_x.patch_end, cut_x.inside_end);
    } else {
      copy_base(cut_x.inside_begin, cut_x.inside_end);
    }
    pad(cut_x.inside_end, width);
  }

  void run() const {
    const int64_t planes = block_volume.channels_last ? 1 : block_volume.channels;
    const int64_t unit = block_volume.channels_last ? block_volume.channels : 1;
    const auto& [depth, height, width] = block_volume.size;
    const int64_t row_bytes = width * unit * element_size;
    const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, row_bytes));
    torch::stable::parallel_for(0, windows * planes * depth * height, grain,
                                [&](int64_t begin, int64_t end) {
                                  int64_t y = begin % height;
                                  int64_t z = begin / height % depth;
                                  int64_t channel = begin / height / depth % planes;
                                  int64_t window = begin / height / depth / planes;
                                  AxisCut cuts[kSpatialAxes];
                                  cut_all(window, cuts);
                                  for (int64_t row = begin; row < end; ++row) {
                                    write_row(window, channel, z, y, cuts);
                                    if (++y < height) continue;
                                    y = 0;
                                    if (++z < depth) continue;
                                    z = 0;
                                    if (++channel < planes) continue;
                                    channel = 0;
                                    if (++window < windows) cut_all(window, cuts);
                                  }
                                });
  }
};

Tensor gather_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset,
                      Tensor read_offset, std::vector<int64_t> read_size, double fill,
                      std::optional<Tensor> patch_extent) {
  const Gathering made = prepare_gather(
      base, patch, image, patch_offset, read_offset, read_size, fill, patch_extent,
      [&](const auto& shape, MemoryFormat format) { return empty_block(shape, base, format); });
  check_images(made.held[2], base.size(0));
  if (patch_extent) {
    std::vector<int64_t> most;
    for (int64_t axis = 2; axis < patch.dim(); ++axis) {
      most.push_back(patch.size(axis));
    }
    check_extent("patch_extent", made.held[5], most);
  }
  if (made.block.numel() > 0) {
    Job{made.gather}.run();
  }
  return made.block;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CPU, library) {
  library.impl("gather_patches", TORCH_BOX(&gather_patches));
}

}  // namespace captum_krypton
