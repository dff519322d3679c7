// What the kernels ask of their tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace captum_krypton {

// ChannelsLast is that of any number of axes: the channels of a cell lie side by side. Torch has no
// name for it where there is one axis, and another one where there are three.
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

// The rule of result_is_last in captum_krypton/_kernels/reference.py: what is both is contiguous.
inline MemoryFormat format_of(const Tensor& tensor) {
  const bool first = tensor.dim() < 3 || tensor.is_contiguous() || tensor.stride(1) != 1;
  return first ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast;
}

// Torch's name for a format; not for channels last where there is one axis.
inline MemoryFormat torch_format(size_t dim, MemoryFormat format) {
  const bool volume = format == MemoryFormat::ChannelsLast && dim == 5;
  return volume ? MemoryFormat::ChannelsLast3d : format;
}

inline Tensor pack(const Tensor& tensor, MemoryFormat format) {
  if (is_packed(tensor, format)) {
    return tensor;
  }
  if (tensor.dim() == 3 && format == MemoryFormat::ChannelsLast) {
    const Tensor cells = torch::stable::transpose(tensor, 1, 2);
    return torch::stable::transpose(torch::stable::contiguous(cells), 1, 2);
  }
  const auto dim = static_cast<size_t>(tensor.dim());
  return torch::stable::contiguous(tensor, torch_format(dim, format));
}

// A tensor without content, in the format's order.
inline Tensor empty_in(const std::vector<int64_t>& shape, const Tensor& like, MemoryFormat format) {
  const auto make = [&](const std::vector<int64_t>& sizes, MemoryFormat order) {
    return torch::stable::empty(sizes, like.scalar_type(), like.layout(), like.device(),
                                std::nullopt, order);
  };
  if (shape.size() == 3 && format == MemoryFormat::ChannelsLast) {
    const Tensor cells = make({shape[0], shape[2], shape[1]}, MemoryFormat::Contiguous);
    return torch::stable::transpose(cells, 1, 2);
  }
  return make(shape, torch_format(shape.size(), format));
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
