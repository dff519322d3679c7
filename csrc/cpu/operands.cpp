#include "operands.h"

#include <algorithm>

#include "arena.h"

namespace captum_krypton {
namespace {

// (windows, axes) as (windows, 3), with `rest` for the axes that are not there.
Cells lift_table(const Tensor& table, int64_t axes, int64_t rest) {
  const Tensor packed = pack(table, MemoryFormat::Contiguous);
  const int64_t* from = packed.const_data_ptr<int64_t>();
  Cells cells(static_cast<size_t>(3 * table.size(0)), rest);
  for (auto to = cells.begin(); to != cells.end(); to += 3, from += axes) {
    std::copy(from, from + axes, to + (3 - axes));
  }
  return cells;
}

Cells offsets(const char* name, const Tensor& offset, const Tensor& base, int64_t windows) {
  const int64_t axes = base.dim() - 2;
  check(name, offset, ScalarType::Long, 2);
  check_index(name, offset, base, windows, axes);
  return lift_table(offset, axes, 0);
}

// `extent`, or all cells of patches of the given size.
Cells extents(const char* name, const OptionalTensor& extent, int64_t windows,
              const std::vector<int64_t>& size) {
  const auto axes = static_cast<int64_t>(size.size());
  if (extent) {
    check(name, *extent, ScalarType::Long, 2);
    check_index(name, *extent, *extent, windows, axes);
    check_extent(name, pack(*extent, MemoryFormat::Contiguous), size);
    return lift_table(*extent, axes, 1);
  }
  const Axes all = lift(name, size, axes, 1);
  Cells cells;
  for (int64_t window = 0; window < windows; ++window) {
    cells.insert(cells.end(), all.begin(), all.end());
  }
  return cells;
}

std::vector<int64_t> size_of(const Tensor& tensor) {
  std::vector<int64_t> size;
  for (int64_t axis = 2; axis < tensor.dim(); ++axis) {
    size.push_back(tensor.size(axis));
  }
  return size;
}

}  // namespace

Axes lift(const char* name, const std::vector<int64_t>& numbers, int64_t axes, int64_t rest) {
  STD_TORCH_CHECK(static_cast<int64_t>(numbers.size()) == axes, name, " has ", numbers.size(),
                  " numbers; expected ", axes, ", one for each window axis");
  Axes lifted{rest, rest, rest};
  std::copy(numbers.begin(), numbers.end(), lifted.end() - axes);
  return lifted;
}

int64_t count_axes(const char* name, const Tensor& tensor) {
  const int64_t axes = tensor.dim() - 2;
  STD_TORCH_CHECK(axes >= 1 && axes <= 3, name, " has ", axes, " window axes; expected 1 to 3");
  return axes;
}

Axes axes_of(const Tensor& tensor) { return lift("tensor", size_of(tensor), tensor.dim() - 2, 1); }

void check(const char* name, const Tensor& tensor, ScalarType dtype, int64_t dim) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == dtype && tensor.dim() == dim, name,
                  " has another device, type or number of dimensions than expected");
}

Storage storage_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Storage::kFloat;
    case ScalarType::BFloat16:
      return Storage::kBfloat16;
    case ScalarType::Half:
      return Storage::kHalf;
    default:
      STD_TORCH_CHECK(false, name, " has another type than float32, bfloat16 or float16");
  }
}

const float* numbers_of(const char* name, const OptionalTensor& tensor, int64_t count) {
  if (!tensor) {
    return nullptr;
  }
  check(name, *tensor, ScalarType::Float, 1);
  STD_TORCH_CHECK(tensor->size(0) == count && tensor->is_contiguous(), name, " has ",
                  tensor->size(0), " elements; expected ", count, ", contiguous");
  return tensor->const_data_ptr<float>();
}

const float* packed_numbers(const Tensor& packed, int64_t expected) {
  check("packed", packed, ScalarType::Float, packed.dim());
  STD_TORCH_CHECK(packed.is_contiguous() && packed.numel() == expected, "packed has ",
                  packed.numel(), " elements; expected ", expected, ", contiguous");
  return packed.const_data_ptr<float>();
}

int64_t packed_channels(int64_t groups, int64_t out_channels, bool narrow, int64_t panel) {
  return narrow ? out_channels : groups * round_up(out_channels / groups, panel);
}

Source Held::source() const {
  const Axes volume = axes_of(base), own = axes_of(patch);
  return {base.const_data_ptr(),
          patch.const_data_ptr(),
          zeros.data(),
          image.const_data_ptr<int64_t>(),
          patch_offset.data(),
          patch_extent.data(),
          read_offset.data(),
          base.size(1),
          volume[0],
          volume[1],
          volume[2],
          own[0],
          own[1],
          own[2]};
}

Held hold(const Tensor& base, const Tensor& patch, const Tensor& image, const Tensor& patch_offset,
          const OptionalTensor& patch_extent, const Tensor& read_offset, bool lowest) {
  const int64_t axes = count_axes("base", base);
  const Storage storage = storage_of("base", base);
  check("base", base, base.scalar_type(), axes + 2);
  check("patch", patch, base.scalar_type(), axes + 2);
  const int64_t windows = patch.size(0);
  STD_TORCH_CHECK(patch.size(1) == base.size(1), "patch has ", patch.size(1),
                  " channels; expected those of base, ", base.size(1));
  check("image", image, ScalarType::Long, 1);
  check_index("image", image, base, windows, 1);
  constexpr uint32_t kLowest[kStorages] = {0xFF800000U, 0xFF80FF80U, 0xFC00FC00U};
  const uint32_t padding = lowest ? kLowest[static_cast<size_t>(storage)] : 0U;
  Held held{storage,
            pack(base, MemoryFormat::ChannelsLast),
            pack(patch, MemoryFormat::ChannelsLast),
            pack(image, MemoryFormat::Contiguous),
            offsets("patch_offset", patch_offset, base, windows),
            extents("patch_extent", patch_extent, windows, size_of(patch)),
            offsets("read_offset", read_offset, base, windows),
            std::vector<uint32_t>(static_cast<size_t>(base.size(1)), padding)};
  check_images(held.image, base.size(0));
  return held;
}

HeldEnding::HeldEnding(const Tensor& base, const Tensor& image, int64_t channels,
                       const OptionalTensor& bias, const Residual& residual,
                       const OptionalTensor& output_offset, double low, double high,
                       int64_t activation, const OptionalTensor& slope)
    : bias_(numbers_of("bias", bias, channels)),
      slope_(numbers_of("slope", slope, channels)),
      low_(static_cast<float>(low)),
      high_(static_cast<float>(high)),
      activation_(static_cast<Activation>(activation)) {
  STD_TORCH_CHECK(activation >= 0 && activation < kActivations, "activation is ", activation,
                  "; expected 0 to ", kActivations - 1);
  STD_TORCH_CHECK(slope.has_value() == (activation_ == Activation::kPrelu),
                  "slope comes with PReLU, and with nothing else");
  if (!residual.base) {
    return;
  }
  STD_TORCH_CHECK(residual.patch && residual.offset && output_offset,
                  "residual_base comes without residual_patch, residual_offset or output_offset");
  added_ = hold(*residual.base, *residual.patch, image, *residual.offset, residual.extent,
                *output_offset);
  STD_TORCH_CHECK(residual.base->scalar_type() == base.scalar_type(),
                  "residual_base has another type than base");
  STD_TORCH_CHECK(residual.base->dim() == base.dim() && residual.base->size(1) == channels,
                  "residual_base has ", residual.base->size(1), " channels and ",
                  residual.base->dim() - 2, " window axes; expected ", channels, " and ",
                  base.dim() - 2);
  source_ = added_->source();
}

Output Written::output() const {
  const Axes size = axes_of(out);
  return {out.mutable_data_ptr(), out.size(0),   size[0],   size[1], size[2], out.size(1),
          extent.data(),          before.data(), {1, 1, 1}, nullptr};
}

Written allocate(const Tensor& like, int64_t windows, int64_t channels,
                 const std::vector<int64_t>& size, const OptionalTensor& extent) {
  lift("size", size, count_axes("base", like), 1);
  std::vector<int64_t> shape{windows, channels};
  shape.insert(shape.end(), size.begin(), size.end());
  Written made{empty_block(shape, like, MemoryFormat::ChannelsLast),
               extents("output_extent", extent, windows, size),
               {0}};
  for (auto cells = made.extent.begin(); cells != made.extent.end(); cells += 3) {
    made.before.push_back(made.before.back() + cells[0] * cells[1] * cells[2]);
  }
  return made;
}

}  // namespace captum_krypton
