// Convolutions of single tiles by definition, from weights as they are.
#pragma once

#include "finish.h"
#include "lanes.h"
#include "unroll.h"

namespace captum_krypton {
namespace {

// Outputs side by side, directly: the lanes are input channels, with sums of their own.
template <typename T>
struct DirectRow {
  const Convolution& conv;
  const T* const* cells;  // `pitch` from one row to the next, `plane` from one plane
  int64_t pitch, plane;
  int64_t begin, end;  // output channels
  const Finish<T>& finish;
  int64_t first_row;  // for `finish`
  T* out;

  __attribute__((noinline)) void run_all(int outputs) const {
    for_outputs<kMostOutputs>(outputs, *this);
  }

  template <int Outputs>
  KRYPTON_INLINE void run() const {
    if constexpr (Outputs > 0) {
      int64_t k = begin;
      for (; k + 2 <= end; k += 2) {
        add_up<Outputs, 2>(k);
      }
      if (k < end) {
        add_up<Outputs, 1>(k);
      }
    }
  }

  template <int Outputs, int Channels>
  KRYPTON_INLINE void add_up(int64_t first) const {
    const int64_t channels = conv.source.channels;
    const int64_t rows = conv.kernel[1], columns = conv.kernel[2];
    const int64_t taps = conv.kernel[0] * rows * columns, each = taps * channels;
    const float* weight = conv.range->weight + first * each;
    Vector lanes[Outputs * Channels] = {};
    for (int64_t tap = 0; tap < taps; ++tap, weight += channels) {
      const int64_t row = tap / columns;
      const T* const* const read = cells + row / rows * plane + row % rows * pitch + tap % columns;
      add_products<Outputs, Channels>(read, channels, weight, each, lanes);
    }
    float sums[whole_vectors(Outputs * Channels)];
    store_totals(lanes, sums);
    finish_sums(sums, Outputs, Channels, first);
  }

  __attribute__((noinline)) void finish_sums(const float* sums, int outputs, int channels,
                                             int64_t first) const {
    for (int t = 0; t < outputs; ++t) {
      for (int k = 0; k < channels; ++k, ++sums) {
        store(out + t * conv.out.channels + first + k,
              finish.apply(*sums, first_row + t, first + k));
      }
    }
  }
};

}  // namespace
}  // namespace captum_krypton
