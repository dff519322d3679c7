// transposed_patches on the CPU: outputs of one phase at a time, which read the same taps.
//
// Along an axis, output o of the volume reads tap t of input (o + padding - t * dilation) / stride
// where that is whole. The phase of o is (o + padding) mod stride; it says which taps those are,
// and neighbours of one phase read neighbouring inputs: an ordinary convolution of stride 1, by
// some of the taps and backwards.

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <numeric>
#include <vector>

#include "instruction_set.h"
#include "operands.h"
#include "units.h"

namespace captum_krypton {
namespace {

int64_t modulo(int64_t number, int64_t of) { return (number % of + of) % of; }

// An axis of the operator.
struct Axis {
  int64_t taps, stride, padding, dilation;

  // Inputs from one tap of a phase to the next.
  int64_t spread() const { return dilation / std::gcd(dilation, stride); }
};

// The taps of an axis that the outputs of a phase read.
struct Phase {
  int64_t number, count = 0, last = 0;

  Phase(const Axis& axis, int64_t phase) : number(phase) {
    for (int64_t tap = 0; tap < axis.taps; ++tap) {
      if (tap * axis.dilation % axis.stride == phase) {
        ++count;
        last = tap;
      }
    }
  }
};

// Of every window's patch, the cells of one phase along each axis.
class PhaseCells {
 public:
  PhaseCells(const Axis (&axes)[3], const Phase (&phases)[3], const Cells& offset,
             const Cells& extent) {
    for (size_t i = 0; i < offset.size(); i += 3) {
      int64_t cells = 1;
      for (size_t axis = 0; axis < 3; ++axis) {
        const Axis& along = axes[axis];
        const Phase& phase = phases[axis];
        const int64_t place = offset[i + axis] + along.padding;  // of the patch, at the taps
        const int64_t skipped = modulo(phase.number - place, along.stride);
        const int64_t left = extent[i + axis] - skipped;
        first_.push_back(skipped);
        extent_.push_back(left > 0 ? (left - 1) / along.stride + 1 : 0);
        read_.push_back(phase.count ? (place + skipped - phase.last * along.dilation) / along.stride
                                    : 0);
        cells *= extent_.back();
      }
      before_.push_back(before_.back() + cells);
    }
  }

  int64_t count() const { return before_.back(); }
  const int64_t* read() const { return read_.data(); }

  // These cells of an output that has all.
  Output of(Output all, const Axis (&axes)[3]) const {
    all.extent = extent_.data();
    all.before = before_.data();
    all.first = first_.data();
    for (size_t axis = 0; axis < 3; ++axis) {
      all.step[axis] = axes[axis].stride;
    }
    return all;
  }

 private:
  Cells first_, extent_, read_, before_{0};
};

Tensor transposed_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset,
                          OptionalTensor patch_extent, Tensor output_offset, Tensor weight,
                          Tensor packed, OptionalTensor bias, std::vector<int64_t> size,
                          OptionalTensor output_extent, std::vector<int64_t> stride,
                          std::vector<int64_t> padding, std::vector<int64_t> dilation,
                          int64_t groups, OptionalTensor residual_base,
                          OptionalTensor residual_patch, OptionalTensor residual_offset,
                          OptionalTensor residual_extent, double low, double high,
                          int64_t activation, OptionalTensor slope) {
  const Kernels& found = need_kernels();
  const Held held = hold(base, patch, image, patch_offset, patch_extent, output_offset);
  check("weight", weight, ScalarType::Float, base.dim());
  const int64_t channels = base.size(1);
  STD_TORCH_CHECK(weight.size(0) == channels && groups > 0 && channels % groups == 0, "weight has ",
                  weight.size(0), " input channels; expected ", channels, ", in ", groups,
                  " groups");
  const int64_t out_channels = weight.size(1) * groups;
  const bool depthwise = groups > 1 && groups == channels && out_channels == channels;
  const int64_t count = base.dim() - 2;
  const auto taps = axes_of(weight), strides = lift("stride", stride, count, 1),
             paddings = lift("padding", padding, count, 0),
             dilations = lift("dilation", dilation, count, 1);
  Axis axes[3];
  for (size_t axis = 0; axis < 3; ++axis) {
    STD_TORCH_CHECK(strides[axis] > 0 && dilations[axis] > 0, "stride or dilation is not positive");
    axes[axis] = {taps[axis], strides[axis], paddings[axis], dilations[axis]};
  }
  const int64_t each = channels / groups;
  const bool narrow = is_narrow(groups, out_channels, found.panel);
  const int64_t padded = packed_channels(groups, out_channels, narrow, found.panel);
  const int64_t of_tap = depthwise ? channels : padded * each;  // numbers of the packed weight
  const int64_t expected = taps[0] * taps[1] * taps[2] * of_tap;
  const float* weights = packed_numbers(packed, expected);
  const Residual residual{residual_base, residual_patch, residual_offset, residual_extent};
  const HeldEnding ending(base, image, out_channels, bias, residual, output_offset, low, high,
                          activation, slope);
  const Written written = allocate(base, patch.size(0), out_channels, size, output_extent);
  if (written.cells() == 0 || out_channels == 0) {
    return written.out;
  }
  std::vector<PhaseCells> cells;  // of every phase; its numbers stay where they are
  std::vector<Convolution> calls;
  std::vector<Work<Convolution>> works;
  Source source = held.source();
  const auto add_phase = [&](const Phase(&phases)[3]) {
    cells.emplace_back(axes, phases, held.read_offset, written.extent);
    source.read_offset = cells.back().read();
    const Convolution conv{source,          weights,
                           ending.ending(), cells.back().of(written.output(), axes),
                           nullptr,         nullptr,
                           groups,          {phases[0].count, phases[1].count, phases[2].count},
                           {1, 1, 1},       {axes[0].spread(), axes[1].spread(), axes[2].spread()}};
    weights += phases[0].count * phases[1].count * phases[2].count * of_tap;
    if (cells.back().count()) {
      calls.push_back(conv);
      works.push_back(direct_work(conv, held.storage, depthwise, narrow, found));
    }
  };
  for (int64_t i = 0; i < axes[0].stride; ++i) {
    for (int64_t j = 0; j < axes[1].stride; ++j) {
      for (int64_t k = 0; k < axes[2].stride; ++k) {
        add_phase({Phase(axes[0], i), Phase(axes[1], j), Phase(axes[2], k)});
      }
    }
  }
  run(calls.data(), works.data(), calls.size());
  return written.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CPU, library) {
  library.impl("transposed_patches", TORCH_BOX(&transposed_patches));
}

}  // namespace captum_krypton
