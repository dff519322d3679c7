// gather_patches on the CPU: every row of a read-in block is at most five copies or fills.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "../patch_index.h"
#include "../tensors.h"
#include "../arena.h"

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

// The bits of -inf, or of the lowest integer where there is no infinity.
uint64_t lowest_bits(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::UInt16:
    case ScalarType::UInt32:
    case ScalarType::UInt64:
      return 0;
    case ScalarType::Char:
      return 0x80;
    case ScalarType::Short:
      return 0x8000;
    case ScalarType::Int:
      return 0x80000000;
    case ScalarType::Long:
      return 0x8000000000000000;
    case ScalarType::Half:
      return 0xFC00;
    case ScalarType::BFloat16:
      return 0xFF80;
    case ScalarType::Float:
      return 0xFF800000;
    case ScalarType::Double:
      return 0xFFF0000000000000;
    default:
      STD_TORCH_CHECK(false, "fill is -inf, which the dtype of base does not have; expected 0");
  }
}

Fill make_fill(const Tensor& base, double fill) {
  STD_TORCH_CHECK(fill == 0 || (std::isinf(fill) && fill < 0), "fill is ", fill,
                  "; expected 0 or -inf");
  return {fill == 0 ? 0 : lowest_bits(base.scalar_type()), base.element_size()};
}

template <typename Sizes>
Volume make_volume(int64_t channels, const Sizes& sizes, size_t first, MemoryFormat format) {
  Volume volume{channels, {1, 1, 1}, format != MemoryFormat::Contiguous};
  const size_t rank = sizes.size() - first;
  for (size_t axis = 0; axis < rank; ++axis) {
    volume.size[kSpatialAxes - rank + axis] = sizes[first + axis];
  }
  return volume;
}

struct Job {
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
  int64_t rank;
  Fill fill;

  void cut(int64_t window, AxisCut (&cuts)[kSpatialAxes]) const {
    for (int64_t axis = 0; axis < kSpatialAxes; ++axis) {
      const int64_t given = axis - (kSpatialAxes - rank);
      const int64_t index = window * rank + given;
      cuts[axis] =
          cut_axis(base_volume.size[axis],
                   given < 0 || !patch_extent ? patch_volume.size[axis] : patch_extent[index],
                   block_volume.size[axis], given < 0 ? 0 : patch_offset[index],
                   given < 0 ? 0 : read_offset[index]);
    }
  }

  // Writes the cells (window, channel, z, y, :) of the result, and all channels of them if last.
  void write_row(int64_t window, int64_t channel, int64_t z, int64_t y,
                 const AxisCut (&cuts)[kSpatialAxes]) const {
    const auto& [cut_z, cut_y, cut_x] = cuts;
    const int64_t element_size = static_cast<int64_t>(fill.element_size);
    const int64_t unit = block_volume.channels_last ? block_volume.channels : 1;
    const int64_t width = block_volume.size[2];
    char* const out = block + block_volume.at(window, channel, z, y, 0) * element_size;
    if (!cut_z.inside(z) || !cut_y.inside(y)) {
      fill.write(out, width * unit);
      return;
    }
    const auto pad = [&](int64_t begin, int64_t end) {
      if (begin < end) {
        fill.write(out + begin * unit * element_size, (end - begin) * unit);
      }
    };
    const auto copy = [&](const char* from, int64_t element, int64_t begin, int64_t end) {
      if (begin < end) {
        std::memcpy(out + begin * unit * element_size, from + element * element_size,
                    static_cast<size_t>((end - begin) * unit * element_size));
      }
    };
    const auto copy_base = [&](int64_t begin, int64_t end) {
      copy(base,
           base_volume.at(image[window], channel, z + cut_z.to_base, y + cut_y.to_base,
                          begin + cut_x.to_base),
           begin, end);
    };
    pad(0, cut_x.inside_begin);
    if (cut_z.covered(z) && cut_y.covered(y)) {
      copy_base(cut_x.inside_begin, cut_x.patch_begin);
      copy(patch,
           patch_volume.at(window, channel, z + cut_z.to_patch, y + cut_y.to_patch,
                           cut_x.patch_begin + cut_x.to_patch),
           cut_x.patch_begin, cut_x.patch_end);
      copy_base(cut_x.patch_end, cut_x.inside_end);
    } else {
      copy_base(cut_x.inside_begin, cut_x.inside_end);
    }
    pad(cut_x.inside_end, width);
  }

  void run(int64_t windows) const {
    const int64_t planes = block_volume.channels_last ? 1 : block_volume.channels;
    const int64_t unit = block_volume.channels_last ? block_volume.channels : 1;
    const auto& [depth, height, width] = block_volume.size;
    const int64_t row_bytes = width * unit * static_cast<int64_t>(fill.element_size);
    const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, row_bytes));
    torch::stable::parallel_for(0, windows * planes * depth * height, grain,
                                [&](int64_t begin, int64_t end) {
                                  int64_t y = begin % height;
                                  int64_t z = begin / height % depth;
                                  int64_t channel = begin / height / depth % planes;
                                  int64_t window = begin / height / depth / planes;
                                  AxisCut cuts[kSpatialAxes];
                                  cut(window, cuts);
                                  for (int64_t row = begin; row < end; ++row) {
                                    write_row(window, channel, z, y, cuts);
                                    if (++y < height) continue;
                                    y = 0;
                                    if (++z < depth) continue;
                                    z = 0;
                                    if (++channel < planes) continue;
                                    channel = 0;
                                    if (++window < windows) cut(window, cuts);
                                  }
                                });
  }
};

Tensor gather_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset,
                      Tensor read_offset, std::vector<int64_t> read_size, double fill,
                      std::optional<Tensor> patch_extent) {
  const int64_t rank = base.dim() - 2;
  STD_TORCH_CHECK(rank >= 1 && rank <= kSpatialAxes, "base has ", rank,
                  " spatial axes; expected 1 to 3");
  const int64_t channels = base.size(1);
  STD_TORCH_CHECK(patch.is_cpu() && patch.scalar_type() == base.scalar_type(),
                  "patch is not of the dtype and on the device of base");
  STD_TORCH_CHECK(patch.dim() == rank + 2 && patch.size(1) == channels, "patch has ", patch.dim(),
                  " axes; expected ", rank + 2, " and the channels of base, ", channels);
  STD_TORCH_CHECK(static_cast<int64_t>(read_size.size()) == rank, "read_size has ",
                  read_size.size(), " numbers; expected ", rank);
  const int64_t windows = patch.size(0);
  check_index("image", image, windows, 1);
  check_index("patch_offset", patch_offset, windows, rank);
  check_index("read_offset", read_offset, windows, rank);
  std::optional<Tensor> packed_patch_extent;
  if (patch_extent) {
    std::vector<int64_t> most;
    for (int64_t axis = 0; axis < rank; ++axis) {
      most.push_back(patch.size(2 + axis));
    }
    packed_patch_extent = packed_extent("patch_extent", *patch_extent, windows, most);
  }
  const Fill padding = make_fill(base, fill);

  const MemoryFormat format = format_of(base);
  std::vector<int64_t> shape{windows, channels};
  shape.insert(shape.end(), read_size.begin(), read_size.end());
  Tensor block = empty_block(shape, base, format);

  const Tensor packed_base = pack(base, format);
  const Tensor packed_patch = pack(patch, format);
  const Tensor packed_image = pack(image, MemoryFormat::Contiguous);
  const Tensor packed_patch_offset = pack(patch_offset, MemoryFormat::Contiguous);
  const Tensor packed_read_offset = pack(read_offset, MemoryFormat::Contiguous);
  check_images(packed_image, base.size(0));
  if (block.numel() == 0) {
    return block;
  }
  const Job job{make_volume(channels, base.sizes(), 2, format),
                make_volume(channels, patch.sizes(), 2, format),
                make_volume(channels, read_size, 0, format),
                static_cast<const char*>(packed_base.const_data_ptr()),
                static_cast<const char*>(packed_patch.const_data_ptr()),
                static_cast<char*>(block.mutable_data_ptr()),
                packed_image.const_data_ptr<int64_t>(),
                packed_patch_offset.const_data_ptr<int64_t>(),
                packed_patch_extent ? packed_patch_extent->const_data_ptr<int64_t>() : nullptr,
                packed_read_offset.const_data_ptr<int64_t>(),
                rank,
                padding};
  job.run(windows);
  return block;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CPU, library) {
  library.impl("gather_patches", TORCH_BOX(&gather_patches));
}

}  // namespace captum_krypton
