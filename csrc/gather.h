// What gather_patches is asked for, checked and laid out; the same for every device.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "patch_index.h"
#include "tensors.h"

namespace captum_krypton {

// The bits of -inf, or of the lowest integer where there is no infinity.
inline uint64_t lowest_bits(ScalarType dtype) {
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

inline uint64_t fill_bits(const Tensor& base, double fill) {
  STD_TORCH_CHECK(fill == 0 || (std::isinf(fill) && fill < 0), "fill is ", fill,
                  "; expected 0 or -inf");
  return fill == 0 ? 0 : lowest_bits(base.scalar_type());
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

namespace {  // torch's tensors are hidden in each library

// A call's arguments, packed, and its result.
struct Gathering {
  Gather gather;
  Tensor block;
  std::vector<Tensor> held;  // what `gather` points into
};

// `allocate(shape, format)` makes the result; the format is that of the base unless one is asked
// for.
template <typename Allocate>
Gathering prepare_gather(const Tensor& base, const Tensor& patch, const Tensor& image,
                         const Tensor& patch_offset, const Tensor& read_offset,
                         const std::vector<int64_t>& read_size, double fill,
                         const std::optional<Tensor>& patch_extent, const Allocate& allocate,
                         std::optional<MemoryFormat> asked = std::nullopt) {
  const int64_t rank = base.dim() - 2;
  STD_TORCH_CHECK(rank >= 1 && rank <= kSpatialAxes, "base has ", rank,
                  " spatial axes; expected 1 to 3");
  const int64_t channels = base.size(1);
  STD_TORCH_CHECK(is_beside(patch, base) && patch.scalar_type() == base.scalar_type(),
                  "patch is not of the dtype and on the device of base");
  STD_TORCH_CHECK(patch.dim() == rank + 2 && patch.size(1) == channels, "patch has ", patch.dim(),
                  " axes; expected ", rank + 2, " and the channels of base, ", channels);
  STD_TORCH_CHECK(static_cast<int64_t>(read_size.size()) == rank, "read_size has ",
                  read_size.size(), " numbers; expected ", rank);
  const int64_t windows = patch.size(0);
  check_index("image", image, base, windows, 1);
  check_index("patch_offset", patch_offset, base, windows, rank);
  check_index("read_offset", read_offset, base, windows, rank);
  const MemoryFormat format = asked.value_or(format_of(base));
  std::vector<Tensor> held{
      pack(base, format), pack(patch, format), pack(image, MemoryFormat::Contiguous),
      pack(patch_offset, MemoryFormat::Contiguous), pack(read_offset, MemoryFormat::Contiguous)};
  if (patch_extent) {
    check_index("patch_extent", *patch_extent, base, windows, rank);
    held.push_back(pack(*patch_extent, MemoryFormat::Contiguous));
  }
  std::vector<int64_t> shape{windows, channels};
  shape.insert(shape.end(), read_size.begin(), read_size.end());
  Tensor block = allocate(shape, format);
  const uint64_t bits = fill_bits(base, fill);
  const auto index = [&](size_t number) { return held[number].const_data_ptr<int64_t>(); };
  const Gather gather{make_volume(channels, base.sizes(), 2, format),
                      make_volume(channels, patch.sizes(), 2, format),
                      make_volume(channels, read_size, 0, format),
                      static_cast<const char*>(held[0].const_data_ptr()),
                      static_cast<const char*>(held[1].const_data_ptr()),
                      static_cast<char*>(block.mutable_data_ptr()),
                      index(2),
                      index(3),
                      patch_extent ? index(5) : nullptr,
                      index(4),
                      windows,
                      base.size(0),
                      rank,
                      static_cast<int64_t>(base.element_size()),
                      bits};
  return {gather, block, std::move(held)};
}

}  // namespace
}  // namespace captum_krypton
