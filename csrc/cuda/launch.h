// Starts kernels on a tensor's device and its current stream. A compiler for the host runs them
// there instead, one thread after another: this is how they are tested without a GPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "../tensors.h"

namespace captum_krypton {

constexpr int64_t kMostBlocks = 1 << 20;  // far more than run at once; the rest is steps

}  // namespace captum_krypton

#ifdef __CUDACC__

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

namespace captum_krypton {

inline bool is_launchable(const Tensor& tensor) { return tensor.is_cuda(); }

// The device of `like`, current while this lives, and its current stream.
class Launcher {
 public:
  explicit Launcher(const Tensor& like) : guard_(like.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename Work>
  void run(void (*kernel)(Work), int64_t blocks, int threads, const Work& work) const {
    kernel<<<static_cast<unsigned>(blocks), threads, 0, stream_>>>(work);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace captum_krypton

#else

#define __global__
#define __launch_bounds__(threads)

namespace captum_krypton {

struct Position {
  unsigned x;
};
inline thread_local Position blockIdx, threadIdx, blockDim, gridDim;

inline bool is_launchable(const Tensor& tensor) { return tensor.is_cpu(); }

class Launcher {
 public:
  explicit Launcher(const Tensor&) {}

  template <typename Work>
  void run(void (*kernel)(Work), int64_t blocks, int threads, const Work& work) const {
    gridDim.x = static_cast<unsigned>(blocks);
    blockDim.x = static_cast<unsigned>(threads);
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
      for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) {
        kernel(work);
      }
    }
  }
};

}  // namespace captum_krypton

#endif
