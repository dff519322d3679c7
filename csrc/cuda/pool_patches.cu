// pool_patches on a GPU: some channels of a cell of the result a thread and step, read where they
// lie. Channels are last.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "../gather.h"
#include "lanes.h"
#include "launch.h"
#include "window_place.h"

namespace captum_krypton {
namespace {

constexpr int kThreads = 128;

// What is asked for. A block of `gather` is not made: its place is what the pooling writes.
struct Pool {
  Gather gather;
  int64_t kernel[2], stride[2], dilation[2], size[2];
  float divisor;
  bool maximum;
};

// The results of each window, numbered as they lie in memory.
template <typename Index>
struct PoolUnits {
  Pool pool;
  Divisor<Index> parts, width;  // vectors of a cell; cells of a row
  Deal<Index> deal;
};

// The volume's channels of one cell, in the patch or in the base.
template <typename Int>
KRYPTON_HOST_DEVICE const char* find_cell(const Gather& gather, const WindowPlace<Int>& place,
                                          Int y, Int x) {
  const bool covered = place.covers(1, y) && place.covers(2, x);
  const Volume& volume = covered ? gather.patch_volume : gather.base_volume;
  const auto height = static_cast<Int>(volume.size[1]), width = static_cast<Int>(volume.size[2]);
  const auto row = static_cast<Int>(covered ? place.window : place.image);
  const Int at_y = covered ? y - place.patch[1] : y, at_x = covered ? x - place.patch[2] : x;
  const auto cell = static_cast<int64_t>((row * height + at_y) * width + at_x);
  return (covered ? gather.patch : gather.base) + cell * volume.channels * gather.element_size;
}

template <typename Scalar, int kLanes, bool kMaximum, typename Int, typename Index>
KRYPTON_HOST_DEVICE Lanes<Scalar, kLanes> pool_unit(const PoolUnits<Index>& units,
                                                    const WindowPlace<Int>& place, Index number) {
  using Vector = Lanes<Scalar, kLanes>;
  const Pool& pool = units.pool;
  const Gather& gather = pool.gather;
  const Index part = split(number, units.parts);
  const Int x = place.read[2] + static_cast<Int>(split(number, units.width) * pool.stride[1]);
  const Int y = place.read[1] + static_cast<Int>(number * pool.stride[0]);
  float found[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    found[lane] = kMaximum ? -INFINITY : 0.0F;
  }
  for (Int i = 0; i < static_cast<Int>(pool.kernel[0]); ++i) {
    const Int at_y = y + i * static_cast<Int>(pool.dilation[0]);
    if (at_y < 0 || at_y >= static_cast<Int>(gather.base_volume.size[1])) {
      continue;
    }
    for (Int j = 0; j < static_cast<Int>(pool.kernel[1]); ++j) {
      const Int at_x = x + j * static_cast<Int>(pool.dilation[1]);
      if (at_x < 0 || at_x >= static_cast<Int>(gather.base_volume.size[2])) {
        continue;
      }
      const Vector read =
          reinterpret_cast<const Vector*>(find_cell<Int>(gather, place, at_y, at_x))[part];
      for (int lane = 0; lane < kLanes; ++lane) {
        const auto value = static_cast<float>(read.values[lane]);
        if (!kMaximum) {
          found[lane] += value;
        } else if (value > found[lane] || value != value) {  // what is not a number is the largest
          found[lane] = value;
        }
      }
    }
  }
  Vector result;
  for (int lane = 0; lane < kLanes; ++lane) {
    result.values[lane] = static_cast<Scalar>(kMaximum ? found[lane] : found[lane] / pool.divisor);
  }
  return result;
}

template <typename Scalar, int kLanes, bool kMaximum, typename Int, typename Index>
__global__ void __launch_bounds__(kThreads) pool_kernel(const PoolUnits<Index> units) {
  using Vector = Lanes<Scalar, kLanes>;
  const Deal<Index>& deal = units.deal;
  for (Index block = blockIdx.x; block < deal.blocks; block += gridDim.x) {
    Index window = block;
    const Index number = split(window, deal.blocks_of_window) * deal.in_block + threadIdx.x;
    if (number < deal.of_window) {
      const WindowPlace<Int> place(units.pool.gather, window);
      auto* const results = reinterpret_cast<Vector*>(units.pool.gather.block) +
                            static_cast<int64_t>(window) * static_cast<int64_t>(deal.of_window);
      results[number] = pool_unit<Scalar, kLanes, kMaximum, Int, Index>(units, place, number);
    }
  }
}

template <typename Scalar, int kLanes, bool kMaximum, typename Int, typename Index>
void launch(const Launcher& launcher, const Pool& pool) {
  const int64_t parts = pool.gather.base_volume.channels / kLanes;
  const PoolUnits<Index> units{
      pool, Divisor<Index>(parts), Divisor<Index>(pool.size[1]),
      Deal<Index>(pool.gather.windows, pool.size[0] * pool.size[1] * parts, kThreads)};
  launcher.run(pool_kernel<Scalar, kLanes, kMaximum, Int, Index>,
               std::min(static_cast<int64_t>(units.deal.blocks), kMostBlocks), kThreads, units);
}

template <typename Scalar, int kLanes, bool kMaximum>
void launch(const Launcher& launcher, const Pool& pool) {
  if (fits_32_bits(pool.gather)) {
    launch<Scalar, kLanes, kMaximum, int32_t, uint32_t>(launcher, pool);
  } else {
    launch<Scalar, kLanes, kMaximum, int64_t, uint64_t>(launcher, pool);
  }
}

// 16 bytes at a time where the channels and their places allow it, else one number.
template <typename Scalar>
void launch(const Launcher& launcher, const Pool& pool) {
  constexpr int kWide = 16 / sizeof(Scalar);
  const Gather& gather = pool.gather;
  const bool wide = gather.base_volume.channels % kWide == 0 &&
                    are_aligned({gather.base, gather.patch, gather.block});
  if (wide && pool.maximum) {
    launch<Scalar, kWide, true>(launcher, pool);
  } else if (wide) {
    launch<Scalar, kWide, false>(launcher, pool);
  } else if (pool.maximum) {
    launch<Scalar, 1, true>(launcher, pool);
  } else {
    launch<Scalar, 1, false>(launcher, pool);
  }
}

Tensor pool_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset,
                    std::optional<Tensor> patch_extent, Tensor read_offset,
                    std::vector<int64_t> size, std::optional<Tensor> /*output_extent*/,
                    std::vector<int64_t> kernel, std::vector<int64_t> stride,
                    std::vector<int64_t> dilation, bool maximum, double divisor) {
  STD_TORCH_CHECK(is_launchable(base), "base is not on the device of this kernel");
  STD_TORCH_CHECK(base.dim() == 4 && size.size() == 2 && kernel.size() == 2 && stride.size() == 2 &&
                      dilation.size() == 2 && kernel[0] > 0 && kernel[1] > 0,
                  "base has ", base.dim(),
                  " axes; expected 4, and 2 numbers in size, kernel, stride and dilation");
  const Launcher launcher(base);
  constexpr MemoryFormat kLast = MemoryFormat::ChannelsLast;
  Gathering made = prepare_gather(
      base, patch, image, patch_offset, read_offset, size, 0.0, patch_extent,
      [&](const auto& shape, MemoryFormat) { return empty_in(shape, base, kLast); }, kLast);
  if (made.block.numel() == 0) {
    return made.block;
  }
  const Pool pool{made.gather,
                  {kernel[0], kernel[1]},
                  {stride[0], stride[1]},
                  {dilation[0], dilation[1]},
                  {size[0], size[1]},
                  static_cast<float>(divisor),
                  maximum};
  switch (base.scalar_type()) {
    case ScalarType::Float:
      launch<float>(launcher, pool);
      break;
    case ScalarType::Half:
      launch<torch::headeronly::Half>(launcher, pool);
      break;
    case ScalarType::BFloat16:
      launch<torch::headeronly::BFloat16>(launcher, pool);
      break;
    default:
      STD_TORCH_CHECK(false, "base is not of float32, float16 or bfloat16");
  }
  return made.block;
}

}  // namespace

#ifdef __CUDACC__
STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CUDA, library) {
  library.impl("pool_patches", TORCH_BOX(&pool_patches));
}
#else
STABLE_TORCH_LIBRARY_FRAGMENT(captum_krypton_on_host, library) {
  library.def(
      "pool_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset, "
      "Tensor? patch_extent, Tensor read_offset, SymInt[] size, Tensor? output_extent, "
      "int[] kernel, int[] stride, int[] dilation, bool maximum, float divisor) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(captum_krypton_on_host, CPU, library) {
  library.impl("pool_patches", TORCH_BOX(&pool_patches));
}
#endif

}  // namespace captum_krypton
