// What the kernels ask of their tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace captum_krypton {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Whether the elements lie side by side in the order of the format. Strides of axes of size 1 mean
// nothing.
inline bool is_packed(const Tensor& tensor, MemoryFormat format) {
  if (format == MemoryFormat::Contiguous) {
    return tensor.is_contiguous();
  }
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  int64_t expected = 1;
  const auto fits = [&](size_t axis) {
    const bool result = sizes[axis] == 1 || strides[axis] == expected;
    expected *= sizes[axis];
    return result;
  };
  bool result = fits(1);
  for (size_t axis = sizes.size() - 1; axis >= 2; --axis) {
    result = result && fits(axis);
  }
  return result && fits(0);
}

// The rule of result_format in captum_krypton/_kernels/reference.py: what is both is contiguous.
inline MemoryFormat format_of(const Tensor& tensor) {
  if (tensor.dim() < 4 || tensor.is_contiguous() || tensor.stride(1) != 1) {
    return MemoryFormat::Contiguous;
  }
  return tensor.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d;
}

inline Tensor pack(const Tensor& tensor, MemoryFormat format) {
  return is_packed(tensor, format) ? tensor : torch::stable::contiguous(tensor, format);
}

inline bool is_beside(const Tensor& tensor, const Tensor& other) {
  return tensor.is_cpu() == other.is_cpu() && tensor.is_cuda() == other.is_cuda() &&
         tensor.get_device_index() == other.get_device_index();
}

inline void check_index(const char* name, const Tensor& tensor, const Tensor& base, int64_t windows,
                        int64_t columns) {
  STD_TORCH_CHECK(is_beside(tensor, base) && tensor.scalar_type() == ScalarType::Long, name,
                  " is not int64 on the device of base");
  STD_TORCH_CHECK(tensor.numel() == windows * columns && tensor.size(0) == windows, name, " has ",
                  tensor.numel(), " elements; expected ", columns, " for each of ", windows,
                  " windows");
}

// `extent` is contiguous, on the CPU, and counts, for every window and axis, some of the `most`
// cells that a patch has there.
inline void check_extent(const char* name, const Tensor& extent, const std::vector<int64_t>& most) {
  const int64_t* const cells = extent.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < extent.numel(); ++i) {
    const int64_t limit = most[static_cast<size_t>(i) % most.size()];
    STD_TORCH_CHECK(cells[i] >= 0 && cells[i] <= limit, name, " has ", cells[i],
                    " cells; expected 0 to ", limit);
  }
}

// `image` is contiguous and names one of `images` rows of the base for every window.
inline void check_images(const Tensor& image, int64_t images) {
  const int64_t* const rows = image.const_data_ptr<int64_t>();
  for (int64_t window = 0; window < image.numel(); ++window) {
    STD_TORCH_CHECK(rows[window] >= 0 && rows[window] < images, "image names row ", rows[window],
                    " of base; expected 0 to ", images - 1);
  }
}

}  // namespace captum_krypton
