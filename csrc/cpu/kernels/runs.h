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

  KRYPTON_INLINE float* data() const {
    const int64_t line = (window * out_.depth + place(0, plane)) * out_.height + place(1, row);
    return out_.data + (line * out_.width + place(2, column)) * out_.channels;
  }

 private:
  const Output& out_;
  int64_t left_;
};

// Where `count` cells of a row lie, `step` columns apart from `column` on: into every `pitch`th
// place of `cells`. Patch, base and zeros are each gone through at once.
KRYPTON_INLINE void read_cells(const Row& row, int64_t column, int64_t step, int64_t count,
                               const float** cells, int64_t pitch) {
  while (count > 0) {
    const int64_t u = row.x + column;
    const int64_t q = u - row.patch_x;
    const float* from = row.at(column);
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
    const int64_t same = least(count, step == 1 ? left : (left + step - 1) / step);
    for (int64_t t = 0; t < same; ++t, cells += pitch, from += apart) {
      *cells = from;
    }
    column += same * step;
    count -= same;
  }
}

// The distinct cells that a run reads: for each row of taps, those of all columns from the first to
// the last. Tap j of row i of them, of output t, is
// `rows[i * pitch + t * stride[2] + j * dilation[2]]`.
template <typename Call>
KRYPTON_INLINE int64_t read_columns(const Call& call, const Runs& run, const float** rows) {
  const int64_t pitch =
      (run.count - 1) * call.stride[2] + (call.kernel[2] - 1) * call.dilation[2] + 1;
  for (int64_t d = 0; d < call.kernel[0]; ++d) {
    const int64_t plane = run.plane * call.stride[0] + d * call.dilation[0];
    const View cells = view(call.source, run.window, plane);
    for (int64_t i = 0; i < call.kernel[1]; ++i) {
      const Row row = cells.row(run.row * call.stride[1] + i * call.dilation[1]);
      read_cells(row, run.column * call.stride[2], 1, pitch, rows, 1);
      rows += pitch;
    }
  }
  return pitch;
}

// What is added to a run's cells, where anything is.
KRYPTON_INLINE void read_residual(const Convolution& conv, const Runs& run, const float** cells) {
  if (conv.ending.residual) {
    const View plane = view(*conv.ending.residual, run.window, run.place(0, run.plane));
    const Row row = plane.row(run.place(1, run.row));
    read_cells(row, run.place(2, run.column), conv.out.step[2], run.count, cells, 1);
  }
}

// What the units of a direct convolution read and write, in the scratch of `direct_scratch`.
struct DirectCells {
  int64_t taps;
  const float** cells;     // (units, taps)
  const float** residual;  // by unit
  float** out;             // by unit

  KRYPTON_INLINE DirectCells(const Convolution& conv, int64_t begin, int64_t end, float* scratch)
      : taps(conv.kernel[0] * conv.kernel[1] * conv.kernel[2]),
        cells(reinterpret_cast<const float**>(scratch)),
        residual(cells + (end - begin) * taps),
        out(reinterpret_cast<float**>(scratch) + (end - begin) * (taps + 1)) {
    const int64_t pitch = conv.out.step[2] * conv.out.channels;
    for (Runs run(conv.out, begin, end); run.count; run.next()) {
      const float** tap = cells + run.unit * taps;
      for (int64_t d = 0; d < conv.kernel[0]; ++d) {
        const int64_t plane = run.plane * conv.stride[0] + d * conv.dilation[0];
        const View read = view(conv.source, run.window, plane);
        for (int64_t i = 0; i < conv.kernel[1]; ++i) {
          const Row row = read.row(run.row * conv.stride[1] + i * conv.dilation[1]);
          for (int64_t j = 0; j < conv.kernel[2]; ++j, ++tap) {
            const int64_t column = run.column * conv.stride[2] + j * conv.dilation[2];
            read_cells(row, column, conv.stride[2], run.count, tap, taps);
          }
        }
      }
      read_residual(conv, run, residual + run.unit);
      float* const to = run.data();
      for (int64_t t = 0; t < run.count; ++t) {
        out[run.unit + t] = to + t * pitch;
      }
    }
  }
};

}  // namespace
}  // namespace captum_krypton
