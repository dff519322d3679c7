// convolve_patches and pool_patches on the CPU: they read base, patch and padding where they lie.

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

#include "../convolve.h"
#include "../tensors.h"

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

// Tensors that a source points into; they live as long as it does.
struct Held {
  Tensor base, patch, image, patch_offset, read_offset;
  std::vector<float> zeros;

  Source source() const {
    return {base.const_data_ptr<float>(),
            patch.const_data_ptr<float>(),
            zeros.data(),
            image.const_data_ptr<int64_t>(),
            patch_offset.const_data_ptr<int64_t>(),
            read_offset.const_data_ptr<int64_t>(),
            base.size(1),
            base.size(2),
            base.size(3),
            patch.size(2),
            patch.size(3)};
  }
};

Held hold(const Tensor& base, const Tensor& patch, const Tensor& image, const Tensor& patch_offset,
          const Tensor& read_offset, float padding = 0.0F) {
  check("base", base, ScalarType::Float, 4);
  check("patch", patch, ScalarType::Float, 4);
  const int64_t windows = patch.size(0);
  STD_TORCH_CHECK(patch.size(1) == base.size(1), "patch has ", patch.size(1),
                  " channels; expected those of base, ", base.size(1));
  check("image", image, ScalarType::Long, 1);
  check("patch_offset", patch_offset, ScalarType::Long, 2);
  check("read_offset", read_offset, ScalarType::Long, 2);
  check_index("image", image, windows, 1);
  check_index("patch_offset", patch_offset, windows, 2);
  check_index("read_offset", read_offset, windows, 2);
  Held held{pack(base, MemoryFormat::ChannelsLast),
            pack(patch, MemoryFormat::ChannelsLast),
            pack(image, MemoryFormat::Contiguous),
            pack(patch_offset, MemoryFormat::Contiguous),
            pack(read_offset, MemoryFormat::Contiguous),
            std::vector<float>(static_cast<size_t>(base.size(1)), padding)};
  check_images(held.image, base.size(0));
  return held;
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
int64_t tiles_in_block(int64_t channels) {
  return channels >= 448 ? 192 : (channels >= 192 ? 96 : 48);
}

constexpr int64_t kCellsInBlock = 96;

// As many blocks as threads, or a multiple, and none much smaller than the others.
int64_t even_block(int64_t units, int64_t block, int64_t threads) {
  int64_t blocks = (units + block - 1) / block;
  blocks = std::min((blocks + threads - 1) / threads * threads, units);
  return std::max<int64_t>(1, round_up((units + blocks - 1) / blocks, 6));
}

Work<Convolution> make_work(const Convolution& conv, const Kernels& found, int64_t tile,
                            bool depthwise, int64_t threads) {
  const int64_t taps = conv.kernel[0] * conv.kernel[1];
  Work<Convolution> work{nullptr, conv.windows * conv.height * conv.width, kCellsInBlock, 0};
  if (tile > 0) {
    work.run = tile == 2 ? found.winograd2 : found.winograd4;
    work.units =
        conv.windows * ((conv.height + tile - 1) / tile) * ((conv.width + tile - 1) / tile);
    work.block = tiles_in_block(conv.source.channels);
  } else if (depthwise) {
    work.run = found.depthwise;
  } else {
    work.run = found.direct;
  }
  work.block = even_block(work.units, work.block, threads);
  if (tile > 0) {
    work.scratch =
        winograd_scratch(tile, work.block, conv.source.channels, conv.out_channels, found.panel);
  } else {
    work.scratch = direct_scratch(work.block, taps, found.panel);
  }
  return work;
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

int64_t panel_size() { return kernels() ? kernels()->panel : 0; }

Tensor convolve_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset,
                        Tensor read_offset, Tensor weight, Tensor packed, OptionalTensor bias,
                        std::vector<int64_t> size, std::vector<int64_t> stride,
                        std::vector<int64_t> dilation, int64_t tile, OptionalTensor residual_base,
                        OptionalTensor residual_patch, OptionalTensor residual_offset,
                        OptionalTensor output_offset, double low, double high) {
  const Kernels* const found = kernels();
  STD_TORCH_CHECK(found, "these kernels were built by a compiler without vector types");
  const Held held = hold(base, patch, image, patch_offset, read_offset);
  check("weight", weight, ScalarType::Float, 4);
  const int64_t channels = base.size(1);
  const int64_t out_channels = weight.size(0);
  const bool depthwise = weight.size(1) != channels;
  STD_TORCH_CHECK(!depthwise || (weight.size(1) == 1 && out_channels == channels), "weight has ",
                  weight.size(1), " input channels; expected ", channels, ", or 1");
  STD_TORCH_CHECK(size.size() == 2 && stride.size() == 2 && dilation.size() == 2,
                  "size, stride and dilation have 2 numbers each");
  STD_TORCH_CHECK(tile == 0 || tile == 2 || tile == 4, "tile is ", tile, "; expected 0, 2 or 4");
  STD_TORCH_CHECK(
      tile == 0 || (!depthwise && weight.size(2) == 3 && weight.size(3) == 3 && stride[0] == 1 &&
                    stride[1] == 1 && dilation[0] == 1 && dilation[1] == 1),
      "tile is ", tile, ", which only ungrouped 3 x 3 convolutions of stride 1 have");
  const int64_t taps = weight.size(2) * weight.size(3);
  const int64_t padded = round_up(out_channels, found->panel);
  const int64_t expected = depthwise  ? taps * channels
                           : tile > 0 ? (tile + 2) * (tile + 2) * padded * channels
                                      : taps * padded * channels;
  check("packed", packed, ScalarType::Float, packed.dim());
  STD_TORCH_CHECK(packed.is_contiguous() && packed.numel() == expected, "packed has ",
                  packed.numel(), " elements; expected ", expected, ", contiguous");
  if (bias) {
    check("bias", *bias, ScalarType::Float, 1);
    STD_TORCH_CHECK(bias->size(0) == out_channels && bias->is_contiguous(), "bias has ",
                    bias->size(0), " elements; expected ", out_channels, ", contiguous");
  }
  std::optional<Held> added;
  std::optional<Source> residual;
  if (residual_base) {
    STD_TORCH_CHECK(residual_patch && residual_offset && output_offset,
                    "residual_base comes without residual_patch, residual_offset or output_offset");
    added = hold(*residual_base, *residual_patch, image, *residual_offset, *output_offset);
    STD_TORCH_CHECK(residual_base->size(1) == out_channels, "residual_base has ",
                    residual_base->size(1), " channels; expected ", out_channels);
    residual = added->source();
  }
  const int64_t windows = patch.size(0);
  Tensor out =
      torch::stable::empty({windows, out_channels, size[0], size[1]}, ScalarType::Float,
                           base.layout(), base.device(), std::nullopt, MemoryFormat::ChannelsLast);
  if (out.numel() == 0) {
    return out;
  }
  const Convolution conv{held.source(),
                         residual ? &*residual : nullptr,
                         packed.const_data_ptr<float>(),
                         bias ? bias->const_data_ptr<float>() : nullptr,
                         static_cast<float>(low),
                         static_cast<float>(high),
                         out.mutable_data_ptr<float>(),
                         windows,
                         size[0],
                         size[1],
                         out_channels,
                         {weight.size(2), weight.size(3)},
                         {stride[0], stride[1]},
                         {dilation[0], dilation[1]}};
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  run(conv, make_work(conv, *found, tile, depthwise, threads), threads);
  return out;
}

Tensor pool_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset,
                    Tensor read_offset, std::vector<int64_t> size, std::vector<int64_t> kernel,
                    std::vector<int64_t> stride, std::vector<int64_t> dilation, bool maximum,
                    double divisor) {
  const Kernels* const found = kernels();
  STD_TORCH_CHECK(found, "these kernels were built by a compiler without vector types");
  const float padding = maximum ? -std::numeric_limits<float>::infinity() : 0.0F;
  const Held held = hold(base, patch, image, patch_offset, read_offset, padding);
  STD_TORCH_CHECK(size.size() == 2 && kernel.size() == 2 && stride.size() == 2 &&
                      dilation.size() == 2 && kernel[0] > 0 && kernel[1] > 0,
                  "size, kernel, stride and dilation have 2 numbers each");
  const int64_t windows = patch.size(0);
  Tensor out =
      torch::stable::empty({windows, base.size(1), size[0], size[1]}, ScalarType::Float,
                           base.layout(), base.device(), std::nullopt, MemoryFormat::ChannelsLast);
  if (out.numel() == 0) {
    return out;
  }
  const Pooling call{held.source(),
                     static_cast<float>(1.0 / divisor),
                     out.mutable_data_ptr<float>(),
                     windows,
                     size[0],
                     size[1],
                     {kernel[0], kernel[1]},
                     {stride[0], stride[1]},
                     {dilation[0], dilation[1]}};
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t units = windows * size[0] * size[1];
  const int64_t block = even_block(units, kCellsInBlock, threads);
  run(call,
      Work<Pooling>{maximum ? found->maximum : found->average, units, block,
                    direct_scratch(1, kernel[0] * kernel[1], found->panel)},
      threads);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CPU, library) {
  library.impl("convolve_patches", TORCH_BOX(&convolve_patches));
  library.impl("pool_patches", TORCH_BOX(&pool_patches));
}

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CompositeExplicitAutograd, library) {
  library.impl("panel_size", TORCH_BOX(&panel_size));
}

}  // namespace captum_krypton
