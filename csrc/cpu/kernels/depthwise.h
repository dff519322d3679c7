// Depthwise convolution: every channel by itself.
#pragma once

#include "columns.h"
#include "finish.h"

namespace captum_krypton {
namespace {

template <typename T>
struct Depthwise {
  const float* weight;
  Finish<T> finish;
  int64_t channels;

  template <typename V, int Outputs>
  struct Block {
    const Depthwise& all;
    int64_t channel;
    V sums[Outputs] = {};

    KRYPTON_INLINE V tap(int64_t number) const {
      return load<V>(all.weight + number * all.channels + channel);
    }
    KRYPTON_INLINE void take(int t, V weight, V number) { sums[t] += number * weight; }
    KRYPTON_INLINE V result(int t, int64_t output) const {
      return all.finish.apply(sums[t], output, channel);
    }
  };
};

template <typename T>
void depthwise(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  const T** const residual = reinterpret_cast<const T**>(scratch);
  const T** const cells = residual + (end - begin);
  for (Runs run(conv.out, begin, end); run.count; run.next()) {
    read_residual(conv, run, residual);
    const Finish<T> finish(conv.ending, residual);
    run_columns(columns(conv, run, cells), run.count,
                Depthwise<T>{conv.weight, finish, conv.out.channels});
  }
}

}  // namespace
}  // namespace captum_krypton
