#include "operands.h"

#include "arena.h"

namespace captum_krypton {
namespace {

// `extent`, or all cells of patches of the given size.
Extents extents(const char* name, const OptionalTensor& extent, int64_t windows, int64_t height,
                int64_t width) {
  Extents cells;
  if (extent) {
    check(name, *extent, ScalarType::Long, 2);
    check_index(name, *extent, *extent, windows, 2);
    const Tensor given = pack(*extent, MemoryFormat::Contiguous);
    check_extent(name, given, {height, width});
    const int64_t* const from = given.const_data_ptr<int64_t>();
    cells.assign(from, from + 2 * windows);
    return cells;
  }
  for (int64_t window = 0; window < windows; ++window) {
    cells.insert(cells.end(), {height, width});
  }
  return cells;
}

}  // namespace

void check(const char* name, const Tensor& tensor, ScalarType dtype, int64_t dim) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == dtype && tensor.dim() == dim, name,
                  " has another device, type or number of dimensions than expected");
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

Source Held::source() const {
  return {base.const_data_ptr<float>(),
          patch.const_data_ptr<float>(),
          zeros.data(),
          image.const_data_ptr<int64_t>(),
          patch_offset.const_data_ptr<int64_t>(),
          patch_extent.data(),
          read_offset.const_data_ptr<int64_t>(),
          base.size(1),
          base.size(2),
          base.size(3),
          patch.size(2),
          patch.size(3)};
}

Held hold(const Tensor& base, const Tensor& patch, const Tensor& image, const Tensor& patch_offset,
          const OptionalTensor& patch_extent, const Tensor& read_offset, float padding) {
  check("base", base, ScalarType::Float, 4);
  check("patch", patch, ScalarType::Float, 4);
  const int64_t windows = patch.size(0);
  STD_TORCH_CHECK(patch.size(1) == base.size(1), "patch has ", patch.size(1),
                  " channels; expected those of base, ", base.size(1));
  check("image", image, ScalarType::Long, 1);
  check("patch_offset", patch_offset, ScalarType::Long, 2);
  check("read_offset", read_offset, ScalarType::Long, 2);
  check_index("image", image, base, windows, 1);
  check_index("patch_offset", patch_offset, base, windows, 2);
  check_index("read_offset", read_offset, base, windows, 2);
  Held held{pack(base, MemoryFormat::ChannelsLast),
            pack(patch, MemoryFormat::ChannelsLast),
            pack(image, MemoryFormat::Contiguous),
            pack(patch_offset, MemoryFormat::Contiguous),
            pack(read_offset, MemoryFormat::Contiguous),
            extents("patch_extent", patch_extent, windows, patch.size(2), patch.size(3)),
            std::vector<float>(static_cast<size_t>(base.size(1)), padding)};
  check_images(held.image, base.size(0));
  return held;
}

Output Written::output() const {
  return {out.mutable_data_ptr<float>(),
          out.size(0),
          out.size(2),
          out.size(3),
          out.size(1),
          extent.data(),
          before.data()};
}

Written allocate(const Tensor& like, int64_t windows, int64_t channels,
                 const std::vector<int64_t>& size, const OptionalTensor& extent) {
  Written made{empty_block({windows, channels, size[0], size[1]}, like, MemoryFormat::ChannelsLast),
               extents("output_extent", extent, windows, size[0], size[1]),
               {0}};
  for (size_t window = 0; window < static_cast<size_t>(windows); ++window) {
    made.before.push_back(made.before.back() +
                          made.extent[2 * window] * made.extent[2 * window + 1]);
  }
  return made;
}

}  // namespace captum_krypton
