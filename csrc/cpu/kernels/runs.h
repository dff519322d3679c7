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

  // Where a cell along an axis lies in the window's patch.
  KRYPTON_INLINE int64_t place(int axis, int64_t cell) const {
    return (out_.first ? out_.first[3 * window + axis] : 0) + cell * out_.step[axis];
  }

  template <typename T>
  KRYPTON_INLINE T* data() const {
    const int64_t line = (window * out_.depth + place(0, plane)) * out_.height + place(1, row);
    return static_cast<T*>(out_.data) + (line * out_.width + place(2, column)) * out_.channels;
  }

 private:
  const Output& out_;
  int64_t left_;
};

// Cells of a row that are all of the patch, or of the base, or zeros.
template <typename T>
struct Stretch {
  const T* from;
  int64_t apart;  // numbers from one cell to the next
  int64_t count;
};

// The first of `count` cells, `step` columns apart from `column` on.
template <typename T>
KRYPTON_INLINE Stretch<T> first_stretch(const Row<T>& row, int64_t column, int64_t step,
                                        int64_t count) {
  const int64_t u = row.x + column;
  const int64_t q = u - row.patch_x;
  int64_t apart = step * row.channels;
  int64_t left = row.width - u;  // columns of the same kind
  if (static_cast<uint64_t>(q) < static_cast<uint64_t>(row.patch_width)) {
    left = row.patch_width - q;
  } else if (static_cast<uint64_t>(u) >= static_cast<uint64_t>(row.width)) {
    apart = 0;
    left = u < 0 && row.width ? -u : count * step;
  } else if (q < 0 && row.patch_width) {
    left = least(left, -q);
  }
  return {row.at(column), apart, least(count, step == 1 ? left : (left + step - 1) / step)};
}

// Where `count` cells of a row lie, `step` columns apart from `column` on.
template <typename T>
KRYPTON_INLINE void read_cells(const Row<T>& row, int64_t column, int64_t step, int64_t count,
                               const T** cells) {
  while (count > 0) {
    const Stretch<T> same = first_stretch(row, column, step, count);
    for (int64_t t = 0; t < same.count; ++t) {
      *cells++ = same.from + t * same.apart;
    }
    column += same.count * step;
    count -= same.count;
  }
}

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
      read_cells(row, run.column * call.stride[2], 1, pitch, rows);
      rows += pitch;
    }
  }
  return pitch;
}

// What is added to a run's cells, where anything is.
template <typename T>
KRYPTON_INLINE void read_residual(const Convolution& conv, const Runs& run, const T** cells) {
  if (conv.ending.residual) {
    const View<T> plane = view<T>(*conv.ending.residual, run.window, run.place(0, run.plane));
    const Row<T> row = plane.row(run.place(1, run.row));
    read_cells(row, run.place(2, run.column), conv.out.step[2], run.count, cells);
  }
}

}  // namespace
}  // namespace captum_krypton
