// convolve_patches on the CPU: it reads base, patch and padding where they lie.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "instruction_set.h"
#include "operands.h"
#include "units.h"

namespace captum_krypton {
namespace {

// Parts of an axis of `cells` cells, as even as can be and none longer than `most`.
struct Parts {
  int64_t count, each, longer;

  Parts(int64_t cells, int64_t most)
      : count((cells + most - 1) / most),
        each(count ? cells / count : 0),
        longer(count ? cells % count : 0) {}

  int64_t begin(int64_t part) const { return part * each + std::min(part, longer); }
  int size(int64_t part) const { return static_cast<int>(each + (part < longer)); }
};

std::vector<Tile> make_tiles(const Written& written, const int64_t (&kernel)[3]) {
  std::vector<Tile> tiles;
  const int group = group_taps(kernel);
  const int64_t windows = static_cast<int64_t>(written.before.size()) - 1;
  for (int64_t window = 0; window < windows; ++window) {
    const int64_t* const extent = written.extent.data() + 3 * window;
    const Parts rows(extent[1], axis_outputs(kernel[1], group));
    const Parts columns(extent[2], axis_outputs(kernel[2], group));
    for (int64_t plane = 0; plane < extent[0]; ++plane) {
      for (int64_t i = 0; i < rows.count; ++i) {
        for (int64_t j = 0; j < columns.count; ++j) {
          tiles.push_back(
              {window, plane, rows.begin(i), columns.begin(j), rows.size(i), columns.size(j)});
        }
      }
    }
  }
  return tiles;
}

// Tiles that stay in the caches through all three stages of Winograd's algorithm.
int64_t tiles_in_block(int64_t points, int64_t depth) {
  const int64_t tiles = depth >= 448 ? 192 : (depth >= 192 ? 96 : 48);
  return points <= group_points(4) ? 4 * tiles : tiles;  // of one axis or of two
}

Work<Convolution> winograd_work(const Convolution& conv, Storage storage, const Kernels& found,
                                int64_t tiles) {
  const int64_t points = winograd_points(conv.kernel);
  const int64_t depth = winograd_depth(conv.kernel, conv.source.channels);
  const int64_t block = even_block(tiles, tiles_in_block(points, depth));
  return {found.of[static_cast<size_t>(storage)].winograd, tiles, block,
          winograd_scratch(points, block, depth, conv.out.channels, found.panel)};
}

// What a range points into; nothing where it is not needed. Without limits, finite tiles are in it.
struct HeldRange {
  Tensor weight;
  std::vector<float> energy, limit;

  HeldRange(bool needed, const Tensor& taps, const OptionalTensor& energies,
            const OptionalTensor& limits, int64_t images)
      : weight(needed ? pack(taps, MemoryFormat::ChannelsLast) : taps),
        energy(read("energy", energies, needed ? taps.size(1) : 0, 1.0F)),
        limit(read("limit", limits, needed ? images : 0, std::numeric_limits<float>::max())) {}

  Range range() const { return {energy.data(), limit.data(), weight.const_data_ptr<float>()}; }

 private:
  static std::vector<float> read(const char* name, const OptionalTensor& from, int64_t count,
                                 float otherwise) {
    if (!from || count == 0) {
      return std::vector<float>(static_cast<size_t>(count), otherwise);
    }
    const float* const numbers = numbers_of(name, from, count);
    return std::vector<float>(numbers, numbers + count);
  }
};

Tensor convolve_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset,
                        OptionalTensor patch_extent, Tensor read_offset, Tensor weight,
                        Tensor packed, OptionalTensor bias, std::vector<int64_t> size,
                        OptionalTensor output_extent, std::vector<int64_t> stride,
                        std::vector<int64_t> dilation, bool winograd, OptionalTensor residual_base,
                        OptionalTensor residual_patch, OptionalTensor residual_offset,
                        OptionalTensor residual_extent, OptionalTensor output_offset, double low,
                        double high, int64_t activation, OptionalTensor energy,
                        OptionalTensor limit, OptionalTensor slope) {
  const Kernels& found = need_kernels();
  const Held held = hold(base, patch, image, patch_offset, patch_extent, read_offset);
  check("weight", weight, ScalarType::Float, base.dim());
  const int64_t channels = base.size(1);
  const int64_t out_channels = weight.size(0);
  const int64_t each = std::max<int64_t>(weight.size(1), 1);
  const int64_t groups = std::max<int64_t>(channels / each, 1);
  const bool depthwise = groups > 1 && each == 1 && out_channels == channels;
  STD_TORCH_CHECK(weight.size(1) * groups == channels && out_channels % groups == 0, "weight has ",
                  out_channels, " output and ", weight.size(1),
                  " input channels; expected them to divide into groups of ", channels,
                  " channels");
  const int64_t axes = base.dim() - 2;
  const Axes taps = axes_of(weight), steps = lift("stride", stride, axes, 1),
             spread = lift("dilation", dilation, axes, 1);
  const int64_t kernel[3] = {taps[0], taps[1], taps[2]};
  constexpr Axes kOnes{1, 1, 1};
  STD_TORCH_CHECK(!winograd || (groups == 1 && kernel[1] * kernel[2] > 1 &&
                                *std::max_element(taps.begin(), taps.end()) <= 3 * kMostGroups &&
                                steps == kOnes && spread == kOnes &&
                                std::min(channels, out_channels) >= found.lanes),
                  "winograd is for ungrouped convolutions of stride 1 with up to ", 3 * kMostGroups,
                  " taps an axis, more than one in height or width, and at least ", found.lanes,
                  " channels");
  const bool narrow = !winograd && is_narrow(groups, out_channels, found.panel);
  const int64_t padded = packed_channels(groups, out_channels, narrow, found.panel);
  const int64_t count = kernel[0] * kernel[1] * kernel[2];
  const int64_t expected = depthwise ? count * channels
                           : winograd
                               ? winograd_points(kernel) * winograd_depth(kernel, channels) * padded
                               : count * padded * weight.size(1);
  const float* const numbers = packed_numbers(packed, expected);
  const Residual residual{residual_base, residual_patch, residual_offset, residual_extent};
  const HeldEnding ending(base, image, out_channels, bias, residual, output_offset, low, high,
                          activation, slope);
  const Written written = allocate(base, patch.size(0), out_channels, size, output_extent);
  if (written.cells() == 0 || out_channels == 0) {
    return written.out;
  }
  const std::vector<Tile> tiles = winograd ? make_tiles(written, kernel) : std::vector<Tile>();
  const HeldRange held_range(winograd, weight, energy, limit, base.size(0));
  const Range range = held_range.range();
  const Convolution conv{held.source(),
                         numbers,
                         ending.ending(),
                         written.output(),
                         winograd ? tiles.data() : nullptr,
                         winograd ? &range : nullptr,
                         groups,
                         {taps[0], taps[1], taps[2]},
                         {steps[0], steps[1], steps[2]},
                         {spread[0], spread[1], spread[2]}};
  if (winograd) {
    run(conv, winograd_work(conv, held.storage, found, static_cast<int64_t>(tiles.size())));
  } else {
    run(conv, direct_work(conv, held.storage, depthwise, narrow, found));
  }
  return written.out;
}

int64_t panel_size() {
  const Kernels* const found = find_kernels();
  return found ? found->panel : 0;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CPU, library) {
  library.impl("convolve_patches", TORCH_BOX(&convolve_patches));
}

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CompositeExplicitAutograd, library) {
  library.impl("panel_size", TORCH_BOX(&panel_size));
}

}  // namespace captum_krypton
