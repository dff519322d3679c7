// Direct convolution: every output cell is a row of the product, its taps one after another.
#pragma once

#include "finish.h"
#include "multiply.h"
#include "runs.h"
#include "unroll.h"
#include "view.h"

namespace captum_krypton {
namespace {

// `count` channels from `channel`, fewer than a panel's.
KRYPTON_INLINE void finish_cells(const float* const* sums, int64_t units, int64_t count,
                                 const Finish& finish, int64_t channel, float* const* out) {
  for (int64_t unit = 0; unit < units; ++unit) {
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes) {
      store(out[unit] + channel + c, finish.apply(load<Vector>(sums[unit] + c), unit, channel + c));
    }
    for (; c < count; ++c) {
      out[unit][channel + c] = finish.apply(sums[unit][c], unit, channel + c);
    }
  }
}

// Weights of a panel of output channels, from `channel`, of which `left` are left at most.
struct Panel {
  const float* const* cells;
  int64_t taps, depth, offset;
  const float* weight;
  int64_t channel, left;

  // The panel's first vectors. Sums that do not fill them all go through `sums` to the output.
  template <int Rows, int Vectors>
  KRYPTON_INLINE void run(int64_t units, float* const* sums, const Finish& finish,
                          float* const* out) const {
    if (left >= Vectors * kLanes) {
      for_rows<Rows>(
          0, units,
          MultiplyCells<Vectors, true>{cells, taps, depth, offset, weight, out, finish, channel});
      return;
    }
    for_rows<Rows>(
        0, units,
        MultiplyCells<Vectors, false>{cells, taps, depth, offset, weight, sums, finish, 0});
    finish_cells(sums, units, left, finish, channel, out);
  }
};

void direct(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  const DirectCells all(conv, begin, end, scratch);
  const int64_t units = end - begin, count = all.taps;
  const int64_t depth = conv.source.channels / conv.groups;
  const int64_t out_each = conv.out.channels / conv.groups;
  float* const sums = scratch + 2 * units * (count + 3);
  float** const last = all.out + units;  // a panel that is not full goes through memory of our own
  for (int64_t unit = 0; unit < units; ++unit) {
    last[unit] = sums + unit * kPanel;
  }
  const Finish finish(conv.ending, all.residual);
  const float* weight = conv.weight;
  for (int64_t group = 0; group < conv.groups; ++group) {
    const int64_t offset = group * depth;
    const int64_t first = group * out_each;
    for (int64_t k = 0; k < out_each; k += kPanel) {
      const Panel panel{all.cells, count, depth, offset, weight, first + k, out_each - k};
      if (panel.left > kLanes) {
        panel.run<kRows, 2>(units, last, finish, all.out);
      } else {
        panel.run<kNarrowRows, 1>(units, last, finish, all.out);
      }
      weight += count * depth * kPanel;
    }
  }
}

}  // namespace
}  // namespace captum_krypton
