#include "units.h"

#include <memory>
#include <new>

namespace captum_krypton {
namespace {

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

float* scratch(int64_t floats) {
  static thread_local Scratch of_this_thread;
  return of_this_thread.get(floats);
}

}  // namespace captum_krypton
