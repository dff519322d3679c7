// What the operators on patches read and write: tensors, checked, and as the kernels see them.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "../tensors.h"
#include "kernels.h"

namespace captum_krypton {

using OptionalTensor = std::optional<Tensor>;

// One number for each of the kernels' axes, or for each of every window: (windows, 3).
using Axes = std::array<int64_t, 3>;
using Cells = std::vector<int64_t>;

// Numbers for one to three window axes as the kernels take them, with `rest` for the axes in front
// that are not there. Fails unless there is one for each of `axes`.
Axes lift(const char* name, const std::vector<int64_t>& numbers, int64_t axes, int64_t rest);

// The size of a tensor (rows, channels, *axes) along the axes; 1 where there are none.
Axes axes_of(const Tensor& tensor);

// One to three: those of a tensor (rows, channels, *axes).
int64_t count_axes(const char* name, const Tensor& tensor);

void check(const char* name, const Tensor& tensor, ScalarType dtype, int64_t dim);

// How the numbers of a tensor lie in memory. Fails for other types than those that kernels read.
Storage storage_of(const char* name, const Tensor& tensor);

// `count` numbers that lie side by side; null where there is no tensor.
const float* numbers_of(const char* name, const OptionalTensor& tensor, int64_t count);

// The numbers of a packed weight; fails unless there are `expected`.
const float* packed_numbers(const Tensor& packed, int64_t expected);

// Output channels of a packed weight, those that fill up panels among them.
int64_t packed_channels(int64_t groups, int64_t out_channels, bool narrow, int64_t panel);

// Tensors that a source points into; they live as long as it does. Torch's tensors are hidden in
// each library, and so is what has some.
struct C10_HIDDEN Held {
  Storage storage;
  Tensor base, patch, image;
  Cells patch_offset, patch_extent, read_offset;
  std::vector<uint32_t> zeros;  // bits, of two numbers each where they have 16

  Source source() const;
};

// `lowest`: outside of the volume is -inf, not zero.
Held hold(const Tensor& base, const Tensor& patch, const Tensor& image, const Tensor& patch_offset,
          const OptionalTensor& patch_extent, const Tensor& read_offset, bool lowest = false);

// What is added to the output of a call, as its arguments have it; none where there is no base.
struct C10_HIDDEN Residual {
  const OptionalTensor &base, &patch, &offset, &extent;
};

// What is done to the sums of a convolution with so many output channels; it lives as long as the
// tensors do.
class C10_HIDDEN HeldEnding {
 public:
  HeldEnding(const Tensor& base, const Tensor& image, int64_t channels, const OptionalTensor& bias,
             const Residual& residual, const OptionalTensor& output_offset, double low, double high,
             int64_t activation, const OptionalTensor& slope);

  Ending ending() const {
    return {bias_, source_ ? &*source_ : nullptr, slope_, low_, high_, activation_};
  }

 private:
  const float *bias_, *slope_;
  float low_, high_;
  Activation activation_;
  std::optional<Held> added_;
  std::optional<Source> source_;
};

// What a call writes, and where.
struct C10_HIDDEN Written {
  Tensor out;
  Cells extent;
  std::vector<int64_t> before;

  int64_t cells() const { return before.back(); }
  Output output() const;
};

Written allocate(const Tensor& like, int64_t windows, int64_t channels,
                 const std::vector<int64_t>& size, const OptionalTensor& extent);

}  // namespace captum_krypton
