// gather_patches on a GPU: one launch a batch, a unit of the result a thread and step.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "../gather.h"
#include "../gather_units.h"
#include "launch.h"

namespace captum_krypton {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;  // far more than run at once; the rest is steps

template <typename Unit, typename Int, typename Index>
__global__ void __launch_bounds__(kThreads) gather_kernel(const GatherUnits<Index> units) {
  const Index step = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index unit = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; unit < units.count;
       unit += step) {
    gather_unit<Unit, Int, Index>(units, unit);
  }
}

template <typename Unit, typename Int, typename Index>
void launch(const Launcher& launcher, const Gather& gather) {
  const GatherUnits<Index> units(gather, sizeof(Unit));
  const int64_t blocks = (static_cast<int64_t>(units.count) + kThreads - 1) / kThreads;
  launcher.run(gather_kernel<Unit, Int, Index>, std::min(blocks, kMostBlocks), kThreads, units);
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
  const Gathering made =
      prepare_gather(base, patch, image, patch_offset, read_offset, read_size, fill, patch_extent,
                     [&](const auto& shape, MemoryFormat format) {
                       return torch::stable::empty(shape, base.scalar_type(), base.layout(),
                                                   base.device(), std::nullopt, format);
                     });
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
