// join_patches on the CPU: it reads bases, patches and padding where they lie.

#include <torch/csrc/stable/library.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "instruction_set.h"
#include "operands.h"
#include "units.h"

namespace captum_krypton {
namespace {

Tensor join_patches(std::vector<Tensor> bases, std::vector<Tensor> patches, Tensor image,
                    std::vector<Tensor> patch_offsets, std::vector<Tensor> patch_extents,
                    Tensor read_offset, std::vector<int64_t> size, OptionalTensor output_extent,
                    OptionalTensor scale, OptionalTensor shift, double low, double high) {
  const Kernels& found = need_kernels();
  const size_t count = bases.size();
  STD_TORCH_CHECK(count > 0 && patches.size() == count && patch_offsets.size() == count &&
                      patch_extents.size() == count,
                  "bases, patches, patch_offsets and patch_extents differ in number");
  std::vector<Held> held;
  std::vector<Source> sources;
  int64_t channels = 0;
  for (size_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(
        bases[i].dim() == bases[0].dim() && bases[i].scalar_type() == bases[0].scalar_type(),
        "bases differ in their window axes or types");
    STD_TORCH_CHECK(patches[i].dim() == bases[0].dim() && patches[i].size(0) == read_offset.size(0),
                    "patches have rows for other windows than read_offset");
    held.push_back(
        hold(bases[i], patches[i], image, patch_offsets[i], patch_extents[i], read_offset));
    channels += bases[i].size(1);
  }
  for (const Held& each : held) {
    sources.push_back(each.source());
  }
  const auto storage = static_cast<size_t>(held[0].storage);
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "scale and shift come together");
  const float* const scales = numbers_of("scale or shift", scale, channels);
  const float* const shifts = numbers_of("scale or shift", shift, channels);
  const Written written = allocate(bases[0], read_offset.size(0), channels, size, output_extent);
  if (written.cells() == 0 || channels == 0) {
    return written.out;
  }
  const Joining call{sources.data(),          static_cast<int64_t>(count), scales,          shifts,
                     static_cast<float>(low), static_cast<float>(high),    written.output()};
  const int64_t cells = written.cells();
  run(call, Work<Joining>{found.of[storage].join, cells, even_block(cells, kCellsInBlock), 0});
  return written.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CPU, library) {
  library.impl("join_patches", TORCH_BOX(&join_patches));
}

}  // namespace captum_krypton
