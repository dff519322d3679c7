// pool_patches on the CPU: it reads base, patch and padding where they lie.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "instruction_set.h"
#include "operands.h"
#include "units.h"

namespace captum_krypton {
namespace {

Tensor pool_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset,
                    OptionalTensor patch_extent, Tensor read_offset, std::vector<int64_t> size,
                    OptionalTensor output_extent, std::vector<int64_t> kernel,
                    std::vector<int64_t> stride, std::vector<int64_t> dilation, bool maximum,
                    double divisor) {
  const Kernels& found = need_kernels();
  const Held held = hold(base, patch, image, patch_offset, patch_extent, read_offset, maximum);
  const int64_t axes = base.dim() - 2;
  const Axes taps = lift("kernel", kernel, axes, 1), steps = lift("stride", stride, axes, 1),
             spread = lift("dilation", dilation, axes, 1);
  STD_TORCH_CHECK(*std::min_element(taps.begin(), taps.end()) > 0,
                  "kernel has no cells along an axis");
  const Written written = allocate(base, patch.size(0), base.size(1), size, output_extent);
  if (written.cells() == 0 || base.size(1) == 0) {
    return written.out;
  }
  const Pooling call{held.source(),
                     static_cast<float>(1.0 / divisor),
                     written.output(),
                     {taps[0], taps[1], taps[2]},
                     {steps[0], steps[1], steps[2]},
                     {spread[0], spread[1], spread[2]}};
  const StorageKernels& kernels = found.of[static_cast<size_t>(held.storage)];
  run(call, run_work(call, maximum ? kernels.maximum : kernels.average));
  return written.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CPU, library) {
  library.impl("pool_patches", TORCH_BOX(&pool_patches));
}

}  // namespace captum_krypton
