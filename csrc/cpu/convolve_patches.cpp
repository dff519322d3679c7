// convolve_patches, pool_patches and join_patches on the CPU: they read base, patch and padding
// where they lie.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "../tensors.h"
#include "arena.h"
#include "kernels.h"

namespace captum_krypton {
namespace {

using OptionalTensor = std::optional<Tensor>;

bool has_avx2() {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__) && defined(__GNUC__)
  return has_avx2() && __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

// The best kernels that this processor runs, or those that KRYPTON_KERNELS names; null where the
// compiler could make none.
const Kernels* find_kernels() {
  const char* const asked = std::getenv("KRYPTON_KERNELS");
  const std::string wanted = asked ? asked : "";
  for (const Kernels* const kernels : {has_avx512() ? avx512_kernels() : nullptr,
                                       has_avx2() ? avx2_kernels() : nullptr, portable_kernels()}) {
    if (kernels && (wanted.empty() || wanted == kernels->name)) {
      return kernels;
    }
  }
  STD_TORCH_CHECK(wanted.empty(), "KRYPTON_KERNELS is ", wanted,
                  ", which this processor or this build does not have");
  return nullptr;
}

const Kernels* kernels() {
  static const Kernels* const found = find_kernels();
  return found;
}

// Memory of a thread that its later calls use again.
class Scratch {
 public:
  float* get(int64_t floats) {
    if (floats > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<float*>(
          ::operator new(static_cast<size_t>(floats) * sizeof(float), std::align_val_t{64})));
      size_ = floats;
    }
    return memory_.get();
  }

 private:
  struct Delete {
    void operator()(float* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Delete> memory_;
  int64_t size_ = 0;
};

Scratch& scratch() {
  static thread_local Scratch of_this_thread;
  return of_this_thread;
}

void check(const char* name, const Tensor& tensor, ScalarType dtype, int64_t dim) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == dtype && tensor.dim() == dim, name,
                  " has another device, type or number of dimensions than expected");
}

// How many cells of each window's patch, from its first, count: (windows, 2).
using Extents = std::vector<int64_t>;

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

// Tensors that a source points into; they live as long as it does.
struct Held {
  Tensor base, patch, image, patch_offset, read_offset;
  Extents patch_extent;
  std::vector<float> zeros;

  Source source() const {
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
};

Held hold(const Tensor& base, const Tensor& patch, const Tensor& image, const Tensor& patch_offset,
          const OptionalTensor& patch_extent, const Tensor& read_offset, float padding = 0.0F) {
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

// What a call writes, and where.
struct Written {
  Tensor out;
  Extents extent;
  std::vector<int64_t> before;

  int64_t cells() const { return before.back(); }

  Output output() const {
    return {out.mutable_data_ptr<float>(),
            out.size(0),
            out.size(2),
            out.size(3),
            out.size(1),
            extent.data(),
            before.data()};
  }
};

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

std::vector<Tile> make_tiles(const Written& written, const int64_t (&kernel)[2]) {
  std::vector<Tile> tiles;
  const int group = group_taps(kernel);
  const int64_t windows = static_cast<int64_t>(written.before.size()) - 1;
  for (int64_t window = 0; window < windows; ++window) {
    const int64_t* const extent = written.extent.data() + 2 * window;
    const Parts rows(extent[0], axis_outputs(kernel[0], group));
    const Parts columns(extent[1], axis_outputs(kernel[1], group));
    for (int64_t i = 0; i < rows.count; ++i) {
      for (int64_t j = 0; j < columns.count; ++j) {
        tiles.push_back({window, rows.begin(i), columns.begin(j), rows.size(i), columns.size(j)});
      }
    }
  }
  return tiles;
}

// How the units of a call are cut into blocks, and what runs a block.
template <typename Call>
struct Work {
  void (*run)(const Call&, int64_t, int64_t, float*);
  int64_t units;
  int64_t block;
  int64_t scratch;
};

// Tiles that stay in the caches through all three stages of Winograd's algorithm.
int64_t tiles_in_block(int64_t points, int64_t depth) {
  const int64_t tiles = depth >= 448 ? 192 : (depth >= 192 ? 96 : 48);
  return points <= group_points(4) ? 4 * tiles : tiles;  // of one axis or of two
}

constexpr int64_t kCellsInBlock = 96;

// As many blocks as threads, or a multiple, and none much smaller than the others.
int64_t even_block(int64_t units, int64_t block, int64_t threads) {
  int64_t blocks = (units + block - 1) / block;
  blocks = std::min((blocks + threads - 1) / threads * threads, units);
  return std::max<int64_t>(1, round_up((units + blocks - 1) / blocks, 6));
}

Work<Convolution> winograd_work(const Convolution& conv, const Kernels& found, int64_t tiles,
                                int64_t threads) {
  const int64_t points = winograd_points(conv.kernel);
  const int64_t depth = winograd_depth(conv.kernel, conv.source.channels);
  const int64_t block = even_block(tiles, tiles_in_block(points, depth), threads);
  return {found.winograd, tiles, block,
          winograd_scratch(points, block, depth, conv.out.channels, found.panel)};
}

template <typename Call>
Work<Call> cell_work(const Call& call, void (*kernel)(const Call&, int64_t, int64_t, float*),
                     const Kernels& found, int64_t threads) {
  const int64_t units = call.out.before[call.out.windows];
  const int64_t block = even_block(units, kCellsInBlock, threads);
  const int64_t taps = call.kernel[0] * call.kernel[1];
  return {kernel, units, block,
          std::max(direct_scratch(block, taps, found.panel), run_scratch(call, block))};
}

template <typename Call>
void run(const Call& call, const Work<Call>& work, int64_t threads) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      float* const memory = scratch().get(work.scratch);
      for (;;) {
        const int64_t first = next.fetch_add(work.block, std::memory_order_relaxed);
        if (first >= work.units) {
          break;
        }
        work.run(call, first, std::min(work.units, first + work.block), memory);
      }
    }
  });
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
    check(name, *from, ScalarType::Float, 1);
    STD_TORCH_CHECK(from->size(0) == count && from->is_contiguous(), name, " has ", from->size(0),
                    " elements; expected ", count, ", contiguous");
    const float* const numbers = from->const_data_ptr<float>();
    return std::vector<float>(numbers, numbers + count);
  }
};

int64_t panel_size() { return kernels() ? kernels()->panel : 0; }

Tensor convolve_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset,
                        OptionalTensor patch_extent, Tensor read_offset, Tensor weight,
                        Tensor packed, OptionalTensor bias, std::vector<int64_t> size,
                        OptionalTensor output_extent, std::vector<int64_t> stride,
                        std::vector<int64_t> dilation, bool winograd, OptionalTensor residual_base,
                        OptionalTensor residual_patch, OptionalTensor residual_offset,
                        OptionalTensor residual_extent, OptionalTensor output_offset, double low,
                        double high, int64_t activation, OptionalTensor energy,
                        OptionalTensor limit) {
  const Kernels* const found = kernels();
  STD_TORCH_CHECK(found, "these kernels were built by a compiler without vector types");
  const Held held = hold(base, patch, image, patch_offset, patch_extent, read_offset);
  check("weight", weight, ScalarType::Float, 4);
  const int64_t channels = base.size(1);
  const int64_t out_channels = weight.size(0);
  const int64_t each = std::max<int64_t>(weight.size(1), 1);
  const int64_t groups = std::max<int64_t>(channels / each, 1);
  const bool depthwise = groups > 1 && each == 1 && out_channels == channels;
  STD_TORCH_CHECK(weight.size(1) * groups == channels && out_channels % groups == 0, "weight has ",
                  out_channels, " output and ", weight.size(1),
                  " input channels; expected them to divide into groups of ", channels,
                  " channels");
  STD_TORCH_CHECK(size.size() == 2 && stride.size() == 2 && dilation.size() == 2,
                  "size, stride and dilation have 2 numbers each");
  const int64_t kernel[2] = {weight.size(2), weight.size(3)};
  STD_TORCH_CHECK(
      !winograd || (groups == 1 && kernel[0] * kernel[1] > 1 &&
                    std::max(kernel[0], kernel[1]) <= 3 * kMostGroups && stride[0] == 1 &&
                    stride[1] == 1 && dilation[0] == 1 && dilation[1] == 1 &&
                    std::min(channels, out_channels) >= found->lanes),
      "winograd is for ungrouped convolutions of stride 1 with up to ", 3 * kMostGroups,
      " taps an axis and at least ", found->lanes, " channels");
  const int64_t padded = groups * round_up(out_channels / groups, found->panel);
  const int64_t expected = depthwise ? kernel[0] * kernel[1] * channels
                           : winograd
                               ? winograd_points(kernel) * winograd_depth(kernel, channels) * padded
                               : kernel[0] * kernel[1] * padded * weight.size(1);
  check("packed", packed, ScalarType::Float, packed.dim());
  STD_TORCH_CHECK(packed.is_contiguous() && packed.numel() == expected, "packed has ",
                  packed.numel(), " elements; expected ", expected, ", contiguous");
  if (bias) {
    check("bias", *bias, ScalarType::Float, 1);
    STD_TORCH_CHECK(bias->size(0) == out_channels && bias->is_contiguous(), "bias has ",
                    bias->size(0), " elements; expected ", out_channels, ", contiguous");
  }
  STD_TORCH_CHECK(activation >= 0 && activation < kActivations, "activation is ", activation,
                  "; expected 0 to ", kActivations - 1);
  std::optional<Held> added;
  std::optional<Source> residual;
  if (residual_base) {
    STD_TORCH_CHECK(residual_patch && residual_offset && output_offset,
                    "residual_base comes without residual_patch, residual_offset or output_offset");
    added = hold(*residual_base, *residual_patch, image, *residual_offset, residual_extent,
                 *output_offset);
    STD_TORCH_CHECK(residual_base->size(1) == out_channels, "residual_base has ",
                    residual_base->size(1), " channels; expected ", out_channels);
    residual = added->source();
  }
  const Written written = allocate(base, patch.size(0), out_channels, size, output_extent);
  if (written.cells() == 0 || out_channels == 0) {
    return written.out;
  }
  const std::vector<Tile> tiles = winograd ? make_tiles(written, kernel) : std::vector<Tile>();
  const HeldRange held_range(winograd, weight, energy, limit, base.size(0));
  const Range range = held_range.range();
  const Convolution conv{held.source(),
                         residual ? &*residual : nullptr,
                         packed.const_data_ptr<float>(),
                         bias ? bias->const_data_ptr<float>() : nullptr,
                         static_cast<float>(low),
                         static_cast<float>(high),
                         static_cast<Activation>(activation),
                         written.output(),
                         winograd ? tiles.data() : nullptr,
                         winograd ? &range : nullptr,
                         groups,
                         {kernel[0], kernel[1]},
                         {stride[0], stride[1]},
                         {dilation[0], dilation[1]}};
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  if (winograd) {
    run(conv, winograd_work(conv, *found, static_cast<int64_t>(tiles.size()), threads), threads);
  } else {
    run(conv, cell_work(conv, depthwise ? found->depthwise : found->direct, *found, threads),
        threads);
  }
  return written.out;
}

Tensor pool_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset,
                    OptionalTensor patch_extent, Tensor read_offset, std::vector<int64_t> size,
                    OptionalTensor output_extent, std::vector<int64_t> kernel,
                    std::vector<int64_t> stride, std::vector<int64_t> dilation, bool maximum,
                    double divisor) {
  const Kernels* const found = kernels();
  STD_TORCH_CHECK(found, "these kernels were built by a compiler without vector types");
  const float padding = maximum ? -std::numeric_limits<float>::infinity() : 0.0F;
  const Held held = hold(base, patch, image, patch_offset, patch_extent, read_offset, padding);
  STD_TORCH_CHECK(size.size() == 2 && kernel.size() == 2 && stride.size() == 2 &&
                      dilation.size() == 2 && kernel[0] > 0 && kernel[1] > 0,
                  "size, kernel, stride and dilation have 2 numbers each");
  const Written written = allocate(base, patch.size(0), base.size(1), size, output_extent);
  if (written.cells() == 0 || base.size(1) == 0) {
    return written.out;
  }
  const Pooling call{held.source(),          static_cast<float>(1.0 / divisor),
                     written.output(),       {kernel[0], kernel[1]},
                     {stride[0], stride[1]}, {dilation[0], dilation[1]}};
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  run(call, cell_work(call, maximum ? found->maximum : found->average, *found, threads), threads);
  return written.out;
}

Tensor join_patches(std::vector<Tensor> bases, std::vector<Tensor> patches, Tensor image,
                    std::vector<Tensor> patch_offsets, std::vector<Tensor> patch_extents,
                    Tensor read_offset, std::vector<int64_t> size, OptionalTensor output_extent,
                    OptionalTensor scale, OptionalTensor shift, double low, double high) {
  const Kernels* const found = kernels();
  STD_TORCH_CHECK(found, "these kernels were built by a compiler without vector types");
  const size_t count = bases.size();
  STD_TORCH_CHECK(count > 0 && patches.size() == count && patch_offsets.size() == count &&
                      patch_extents.size() == count,
                  "bases, patches, patch_offsets and patch_extents differ in number");
  STD_TORCH_CHECK(size.size() == 2, "size has 2 numbers");
  std::vector<Held> held;
  std::vector<Source> sources;
  int64_t channels = 0;
  for (size_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(patches[i].dim() == 4 && patches[i].size(0) == read_offset.size(0),
                    "patches have rows for other windows than read_offset");
    held.push_back(
        hold(bases[i], patches[i], image, patch_offsets[i], patch_extents[i], read_offset));
    channels += bases[i].size(1);
  }
  for (const Held& each : held) {
    sources.push_back(each.source());
  }
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "scale and shift come together");
  for (const OptionalTensor& each : {scale, shift}) {
    if (each) {
      check("scale or shift", *each, ScalarType::Float, 1);
      STD_TORCH_CHECK(each->size(0) == channels && each->is_contiguous(), "scale or shift has ",
                      each->size(0), " elements; expected ", channels, ", contiguous");
    }
  }
  const Written written = allocate(bases[0], read_offset.size(0), channels, size, output_extent);
  if (written.cells() == 0 || channels == 0) {
    return written.out;
  }
  const Joining call{sources.data(),
                     static_cast<int64_t>(count),
                     scale ? scale->const_data_ptr<float>() : nullptr,
                     shift ? shift->const_data_ptr<float>() : nullptr,
                     static_cast<float>(low),
                     static_cast<float>(high),
                     written.output()};
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t cells = written.cells();
  run(call, Work<Joining>{found->join, cells, even_block(cells, kCellsInBlock, threads), 0},
      threads);
  return written.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CPU, library) {
  library.impl("join_patches", TORCH_BOX(&join_patches));
  library.impl("convolve_patches", TORCH_BOX(&convolve_patches));
  library.impl("pool_patches", TORCH_BOX(&pool_patches));
}

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CompositeExplicitAutograd, library) {
  library.impl("panel_size", TORCH_BOX(&panel_size));
}

}  // namespace captum_krypton
