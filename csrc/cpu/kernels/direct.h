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
                     MultiplyCells<Vectors, true, T>{cells, taps, depth, offset, weight, sums, out,
                                                     finish, channel});
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
                       cells, taps, depth, offset, weight, sums, sums, {}, 0});
  }
};

// Cells in float, one row of taps of one run after another.
template <typename T>
class Cells {
 public:
  // `room`: for pointers to the columns of a row, at most `most`, and for their numbers.
  KRYPTON_INLINE Cells(float* room, int64_t most, int64_t channels)
      : found_(reinterpret_cast<const float**>(room)),
        room_(room + 2 * most),
        channels_(channels) {}

  KRYPTON_INLINE void begin_row(int64_t columns) {
    for (int64_t k = 0; k < columns; ++k) {
      found_[k] = nullptr;
    }
  }

  // Column k of a row that is read from column `first` on.
  KRYPTON_INLINE const float* at(const Row<T>& row, int64_t first, int64_t k) {
    if (!found_[k]) {
      widen_cell(row.at(first + k));
      found_[k] = room_;
      room_ += channels_;
    }
    return found_[k];
  }

 private:
  KRYPTON_INLINE void widen_cell(const T* from) {
    int64_t c = 0;
    for (; c + kLanes <= channels_; c += kLanes) {
      store(room_ + c, load<Vector>(from + c));
    }
    for (; c < channels_; ++c) {
      store(room_ + c, load<float>(from + c));
    }
  }

  const float** found_;
  float* room_;
  int64_t channels_;
};

// What is float already is read where it lies.
template <>
class Cells<float> {
 public:
  KRYPTON_INLINE Cells(float*, int64_t, int64_t) {}
  KRYPTON_INLINE void begin_row(int64_t) {}
  KRYPTON_INLINE const float* at(const Row<float>& row, int64_t first, int64_t k) {
    return row.at(first + k);
  }
};

template <typename T>
void direct(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  const int64_t count = conv.kernel[0] * conv.kernel[1] * conv.kernel[2];
  const int64_t units = end - begin;
  const int64_t depth = conv.source.channels / conv.groups;
  const int64_t out_each = conv.out.channels / conv.groups;
  const float** const cells = reinterpret_cast<const float**>(scratch);
  const T** const residual = reinterpret_cast<const T**>(scratch) + units * count;
  T** const out = reinterpret_cast<T**>(scratch) + units * (count + 1);
  float** const last = reinterpret_cast<float**>(scratch) + units * (count + 2);
  float* const sums = scratch + 2 * units * (count + 3);
  Cells<T> read(sums + units * kPanel, read_width(conv, units), conv.source.channels);
  for (Runs run(conv.out, begin, end); run.count; run.next()) {
    const float** tap = cells + run.unit * count;
    for (int64_t d = 0; d < conv.kernel[0]; ++d) {
      const int64_t plane = run.plane * conv.stride[0] + d * conv.dilation[0];
      const View<T> planes = view<T>(conv.source, run.window, plane);
      for (int64_t i = 0; i < conv.kernel[1]; ++i) {
        const Row<T> row = planes.row(run.row * conv.stride[1] + i * conv.dilation[1]);
        read.begin_row(read_width(conv, run.count));
        for (int64_t j = 0; j < conv.kernel[2]; ++j, ++tap) {
          const int64_t first = run.column * conv.stride[2];
          for (int64_t t = 0; t < run.count; ++t) {
            tap[t * count] = read.at(row, first, t * conv.stride[2] + j * conv.dilation[2]);
          }
        }
      }
    }
    read_residual(conv, run, residual + run.unit);
    T* const to = run.data<T>();
    for (int64_t t = 0; t < run.count; ++t) {
      out[run.unit + t] = to + t * conv.out.channels;
      last[run.unit + t] = sums + (run.unit + t) * kPanel;
    }
  }
  const Finish<T> finish{conv.bias, conv.residual ? residual : nullptr, conv.low, conv.high,
                         conv.activation};
  const float* weight = conv.weight;
  for (int64_t group = 0; group < conv.groups; ++group) {
    const int64_t offset = group * depth;
    const int64_t first = group * out_each;
    for (int64_t k = 0; k < out_each; k += kPanel) {
      const Panel panel{cells, count, depth, offset, weight, first + k, out_each - k};
      if (panel.left > kLanes) {
        panel.run<kRows, 2, T>(units, last, finish, out);
      } else {
        panel.run<kNarrowRows, 1, T>(units, last, finish, out);
      }
      weight += count * depth * kPanel;
    }
  }
}

}  // namespace
}  // namespace captum_krypton
