// gather_patches on a GPU: one launch a batch; a thread has some units of one window.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "../gather.h"
#include "gather_units.h"
#include "launch.h"

namespace captum_krypton {
namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 4;  // units that a thread has on the way at a time

template <typename Unit, typename Int, typename Index>
__global__ void __launch_bounds__(kThreads) gather_kernel(const GatherUnits<Index> units) {
  const Deal<Index>& deal = units.deal;
  for (Index block = blockIdx.x; block < deal.blocks; block += gridDim.x) {
    Index window = block;
    const Index first = split(window, deal.blocks_of_window) * deal.in_block + threadIdx.x;
    const WindowPlace<Int> place(units.gather, window);
    Unit read[kAtOnce] = {};
    for (int i = 0; i < kAtOnce; ++i) {
      const Index number = first + static_cast<Index>(i * kThreads);
      if (number < deal.of_window) {
        read[i] = read_unit<Unit, Int, Index>(units, place, number);
      }
    }
    Unit* const block_units = reinterpret_cast<Unit*>(units.gather.block) +
                              static_cast<int64_t>(window) * static_cast<int64_t>(deal.of_window);
    for (int i = 0; i < kAtOnce; ++i) {
      const Index number = first + static_cast<Index>(i * kThreads);
      if (number < deal.of_window) {
        block_units[number] = read[i];
      }
    }
  }
}

template <typename Unit, typename Int, typename Index>
void launch(const Launcher& launcher, const Gather& gather) {
  const GatherUnits<Index> units(gather, sizeof(Unit), kThreads * kAtOnce);
  launcher.run(gather_kernel<Unit, Int, Index>,
               std::min(static_cast<int64_t>(units.deal.blocks), kMostBlocks), kThreads, units);
}

template <typename Unit>
void launch(const Launcher& launcher, const Gather& gather) {
  if (fits_32_bits(gather)) {
    launch<Unit, int32_t, uint32_t>(launcher, gather);
  } else {
    launch<Unit, int64_t, uint64_t>(launcher, gather);
  }
}

Tensor gather_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset,
                      Tensor read_offset, std::vector<int64_t> read_size, double fill,
                      std::optional<Tensor> patch_extent) {
  STD_TORCH_CHECK(is_launchable(base), "base is not on the device of this kernel");
  const Launcher launcher(base);
  const Gathering made = prepare_gather(
      base, patch, image, patch_offset, read_offset, read_size, fill, patch_extent,
      [&](const auto& shape, MemoryFormat format) { return empty_in(shape, base, format); });
  if (made.block.numel() == 0) {
    return made.block;
  }
  switch (unit_bytes_of(made.gather)) {
    case 16:
      launch<Unit16>(launcher, made.gather);
      break;
    case 8:
      launch<uint64_t>(launcher, made.gather);
      break;
    case 4:
      launch<uint32_t>(launcher, made.gather);
      break;
    case 2:
      launch<uint16_t>(launcher, made.gather);
      break;
    default:
      launch<uint8_t>(launcher, made.gather);
  }
  return made.block;
}

}  // namespace

#ifdef __CUDACC__
STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CUDA, library) {
  library.impl("gather_patches", TORCH_BOX(&gather_patches));
}
#else
STABLE_TORCH_LIBRARY_FRAGMENT(captum_krypton_on_host, library) {
  library.def(
      "gather_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset, "
      "Tensor read_offset, int[] read_size, float fill, Tensor? patch_extent=None) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(captum_krypton_on_host, CPU, library) {
  library.impl("gather_patches", TORCH_BOX(&gather_patches));
}
#endif

}  // namespace captum_krypton
