// Runs the units of a call on all threads, in blocks: a thread takes one after another.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace captum_krypton {

// How the units of a call are cut into blocks, and what runs a block.
template <typename Call>
struct Work {
  void (*run)(const Call&, int64_t, int64_t, float*);
  int64_t units;
  int64_t block;
  int64_t scratch;
};

constexpr int64_t kCellsInBlock = 96;

// Units of a block, at most `most`, a multiple of 6: as many blocks as threads, or a multiple, and
// none much smaller than the others.
int64_t even_block(int64_t units, int64_t most);

// Memory of this thread that its later calls use again.
float* scratch(int64_t floats);

// For kernels that walk over runs.
template <typename Call>
Work<Call> run_work(const Call& call, void (*kernel)(const Call&, int64_t, int64_t, float*)) {
  const int64_t units = call.out.before[call.out.windows];
  const int64_t block = even_block(units, kCellsInBlock);
  return {kernel, units, block, run_scratch(call, block)};
}

// By the kernel for what is depthwise, or `is_narrow`, or neither.
Work<Convolution> direct_work(const Convolution& conv, Storage storage, bool depthwise, bool narrow,
                              const Kernels& found);

// Several calls in turns, block by block: where they read the same, it is still in the caches.
template <typename Call>
void run(const Call* calls, const Work<Call>* works, size_t count) {
  size_t blocks = 0;  // of the call with the most
  int64_t floats = 0;
  for (size_t i = 0; i < count; ++i) {
    const Work<Call>& work = works[i];
    blocks = std::max(blocks, static_cast<size_t>((work.units + work.block - 1) / work.block));
    floats = std::max(floats, work.scratch);
  }
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  std::atomic<size_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      float* const memory = scratch(floats);
      for (;;) {
        const size_t turn = next.fetch_add(1, std::memory_order_relaxed);
        if (turn >= blocks * count) {
          break;
        }
        const Work<Call>& work = works[turn % count];
        const int64_t first = static_cast<int64_t>(turn / count) * work.block;
        if (first < work.units) {
          work.run(calls[turn % count], first, std::min(work.units, first + work.block), memory);
        }
      }
    }
  });
}

template <typename Call>
void run(const Call& call, const Work<Call>& work) {
  run(&call, &work, 1);
}

}  // namespace captum_krypton
