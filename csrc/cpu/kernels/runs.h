// Output cells, and the cells that they read.
#pragma once

#include "view.h"

namespace captum_krypton {
namespace {

// Output cells side by side, in one row of one window: `count` of them from `column`. The units of
// a call in runs: `for (Runs run(out, begin, end); run.count; run.next())`.
class Runs {
 public:
  int64_t window, plane, row, column, count;
  int64_t unit = 0;  // number of the first cell, from `begin`

  KRYPTON_INLINE Runs(const Output& out, int64_t begin, int64_t end)
      : out_(out), left_(end - begin) {
    int64_t first = 0, last = out.windows;  // of those that may hold the first cell
    while (last - first > 1) {
      const int64_t middle = (first + last) / 2;
      if (out.before[middle] <= begin) {
        first = middle;
      } else {
        last = middle;
      }
    }
    window = first;
    const int64_t height = out.extent[3 * window + 1], width = out.extent[3 * window + 2];
    const int64_t cell = begin - out.before[window];
    plane = cell / width / height;
    row = cell / width % height;
    column = cell % width;
    count = least(left_, width - column);
  }

  KRYPTON_INLINE void next() {
    unit += count;
    left_ -= count;
    column = 0;
    if (++row == out_.extent[3 * window + 1]) {
      row = 0;
      if (++plane == out_.extent[3 * window]) {
        plane = 0;
        do {
          ++window;
        } while (left_ && out_.before[window] == out_.before[window + 1]);
      }
    }
    count = left_ ? least(left_, out_.extent[3 * window + 2]) : 0;
  }

  template <typename T>
  KRYPTON_INLINE T* data() const {
    const int64_t place = (window * out_.depth + plane) * out_.height + row;
    return static_cast<T*>(out_.data) + (place * out_.width + column) * out_.channels;
  }

 private:
  const Output& out_;
  int64_t left_;
};

// The distinct cells that a run reads: for each row of taps, those of all columns from the first to
// the last. Tap j of row i of them, of output t, is
// `rows[i * pitch + t * stride[2] + j * dilation[2]]`.
template <typename Call, typename T>
KRYPTON_INLINE int64_t read_columns(const Call& call, const Runs& run, const T** rows) {
  const int64_t pitch = read_width(call, run.count);
  for (int64_t d = 0; d < call.kernel[0]; ++d) {
    const int64_t plane = run.plane * call.stride[0] + d * call.dilation[0];
    const View<T> cells = view<T>(call.source, run.window, plane);
    for (int64_t i = 0; i < call.kernel[1]; ++i) {
      const Row<T> row = cells.row(run.row * call.stride[1] + i * call.dilation[1]);
      for (int64_t k = 0; k < pitch; ++k) {
        *rows++ = row.at(run.column * call.stride[2] + k);
      }
    }
  }
  return pitch;
}

// What is added to a run's cells, where anything is.
template <typename T>
KRYPTON_INLINE void read_residual(const Convolution& conv, const Runs& run, const T** cells) {
  if (conv.residual) {
    const Row<T> row = view<T>(*conv.residual, run.window, run.plane).row(run.row);
    for (int64_t t = 0; t < run.count; ++t) {
      cells[t] = row.at(run.column + t);
    }
  }
}

}  // namespace
}  // namespace captum_krypton
