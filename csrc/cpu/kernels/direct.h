// Direct convolution: every output cell is a row of the product, its taps one after another.
#pragma once

#include "direct_cells.h"
#include "finish.h"
#include "multiply.h"
#include "unroll.h"

namespace captum_krypton {
namespace {

// `count` channels from `channel`, fewer than a panel's.
template <typename T>
KRYPTON_INLINE void finish_cells(const float* const* sums, int64_t units, int64_t count,
                                 const Finish<T>& finish, int64_t channel, T* const* out) {
  for (int64_t unit = 0; unit < units; ++unit) {
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes) {
      store(out[unit] + channel + c, finish.apply(load<Vector>(sums[unit] + c), unit, channel + c));
    }
    for (; c < count; ++c) {
      store(out[unit] + channel + c, finish.apply(sums[unit][c], unit, channel + c));
    }
  }
}

// Weights of a panel of output channels, from `channel`, of which `left` are left at most.
struct Panel {
  const float* const* cells;
  int64_t taps, depth, offset;
  const float* weight;
  int64_t channel, left;

  // The panel's first vectors. Sums that do not fill them all are finished one by one.
  template <int Rows, int Vectors, typename T>
  KRYPTON_INLINE void run(int64_t units, float* const* sums, const Finish<T>& finish,
                          T* const* out) const {
    if (left >= Vectors * kLanes) {
      for_rows<Rows>(0, units,
                     MultiplyCells<Vectors, true, T>{cells, units, taps, depth, offset, weight,
                                                     sums, out, finish, channel});
      return;
    }
    sum<Rows, Vectors>(units, sums);
    finish_cells(sums, units, left, finish, channel, out);
  }

 private:
  // A function of its own, for all storages.
  template <int Rows, int Vectors>
  __attribute__((noinline)) void sum(int64_t units, float* const* sums) const {
    for_rows<Rows>(0, units,
                   MultiplyCells<Vectors, false, float>{
                       cells, units, taps, depth, offset, weight, sums, sums, {{}, nullptr}, 0});
  }
};

template <typename T>
void direct(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  const DirectCells<T> all(conv, begin, end, scratch);
  const int64_t units = end - begin, count = all.taps;
  const int64_t depth = conv.source.channels / conv.groups;
  const int64_t out_each = conv.out.channels / conv.groups;
  float** const last = reinterpret_cast<float**>(scratch) + units * (count + 2);
  float* const sums = scratch + 2 * units * (count + 3);
  for (int64_t unit = 0; unit < units; ++unit) {
    last[unit] = sums + unit * kPanel;
  }
  const Finish<T> finish(conv.ending, all.residual);
  const float* weight = conv.weight;
  for (int64_t group = 0; group < conv.groups; ++group) {
    const int64_t offset = group * depth;
    const int64_t first = group * out_each;
    for (int64_t k = 0; k < out_each; k += kPanel) {
      const Panel panel{all.cells, count, depth, offset, weight, first + k, out_each - k};
      if (panel.left > kLanes) {
        panel.run<kRows, 2, T>(units, last, finish, all.out);
      } else {
        panel.run<kNarrowRows, 1, T>(units, last, finish, all.out);
      }
      weight += count * depth * kPanel;
    }
  }
}

}  // namespace
}  // namespace captum_krypton
