#include "units.h"

#include <memory>
#include <new>

namespace captum_krypton {
namespace {

// Numbers that a block of a direct convolution widens: they stay in the caches.
constexpr int64_t kMostWidened = int64_t{1} << 18;

// Cells of a block that reads lines: rows of them side by side share most.
constexpr int64_t kCellsByLines = 1024;

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

}  // namespace

int64_t even_block(int64_t units, int64_t most) {
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t blocks = (units + most - 1) / most;
  blocks = std::min((blocks + threads - 1) / threads * threads, units);
  return std::max<int64_t>(1, round_up((units + blocks - 1) / blocks, 6));
}

Work<Convolution> direct_work(const Convolution& conv, Storage storage, bool depthwise, bool narrow,
                              const Kernels& found) {
  const StorageKernels& kernels = found.of[static_cast<size_t>(storage)];
  if (depthwise) {
    return run_work(conv, kernels.depthwise);
  }
  const bool widens = storage != Storage::kFloat;
  const int64_t units = conv.out.before[conv.out.windows];
  const int64_t each = conv.kernel[0] * conv.kernel[1] * conv.kernel[2] * conv.source.channels;
  const int64_t most = kMostWidened / std::max<int64_t>(each, 1);
  const bool by_lines = narrow && conv.source.channels < found.lanes;
  const int64_t cells = by_lines ? kCellsByLines
                        : widens ? std::clamp<int64_t>(most, 12, kCellsInBlock)
                                 : kCellsInBlock;
  const int64_t block = even_block(units, cells);
  if (narrow) {
    return {kernels.narrow, units, block, narrow_scratch(conv, block, found, widens)};
  }
  return {kernels.direct, units, block, direct_scratch(conv, block, found.panel, widens)};
}

float* scratch(int64_t floats) {
  static thread_local Scratch of_this_thread;
  return of_this_thread.get(floats);
}

}  // namespace captum_krypton
