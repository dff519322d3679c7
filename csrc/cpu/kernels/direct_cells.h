// What the units of a direct convolution read and write.
#pragma once

#include "runs.h"

namespace captum_krypton {
namespace {

// Cells widened to float, one row of taps of one run after another.
template <typename T>
class WideCells {
 public:
  // `room`: for pointers to the columns of a row, at most `most`, and for their numbers.
  KRYPTON_INLINE WideCells(float* room, int64_t most, int64_t channels)
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

// In the scratch of `direct_scratch`. What has 16 bits is widened: cells are float.
template <typename T>
struct DirectCells {
  int64_t taps;
  const float** cells;  // (taps, units)
  const T** residual;   // by unit
  T** out;              // by unit

  KRYPTON_INLINE DirectCells(const Convolution& conv, int64_t begin, int64_t end, float* scratch)
      : taps(conv.kernel[0] * conv.kernel[1] * conv.kernel[2]),
        cells(reinterpret_cast<const float**>(scratch)),
        residual(reinterpret_cast<const T**>(scratch) + (end - begin) * taps),
        out(reinterpret_cast<T**>(scratch) + (end - begin) * (taps + 1)) {
    const int64_t units = end - begin, pitch = conv.out.step[2] * conv.out.channels;
    float* const room = scratch + 2 * units * (taps + 3) + units * kPanel;
    WideCells<T> wide(room, read_width(conv, units), conv.source.channels);
    for (Runs run(conv.out, begin, end); run.count; run.next()) {
      const float** tap = cells + run.unit;
      for (int64_t d = 0; d < conv.kernel[0]; ++d) {
        const int64_t plane = run.plane * conv.stride[0] + d * conv.dilation[0];
        const View<T> read = view<T>(conv.source, run.window, plane);
        for (int64_t i = 0; i < conv.kernel[1]; ++i, tap += conv.kernel[2] * units) {
          const Row<T> row = read.row(run.row * conv.stride[1] + i * conv.dilation[1]);
          read_row(conv, run, row, units, wide, tap);
        }
      }
      read_residual(conv, run, residual + run.unit);
      T* const to = run.data<T>();
      for (int64_t t = 0; t < run.count; ++t) {
        out[run.unit + t] = to + t * pitch;
      }
    }
  }

 private:
  // Tap j of output t into place `j * units + t`.
  KRYPTON_INLINE void read_row(const Convolution& conv, const Runs& run, const Row<T>& row,
                               int64_t units, WideCells<T>& wide, const float** tap) const {
    const int64_t first = run.column * conv.stride[2];
    if constexpr (kWidens<T>) {
      wide.begin_row(read_width(conv, run.count));
    }
    for (int64_t j = 0; j < conv.kernel[2]; ++j, tap += units) {
      const int64_t beside = j * conv.dilation[2];
      if constexpr (kWidens<T>) {
        for (int64_t t = 0; t < run.count; ++t) {
          tap[t] = wide.at(row, first, t * conv.stride[2] + beside);
        }
      } else {
        read_cells(row, first + beside, conv.stride[2], run.count, tap);
      }
    }
  }
};

}  // namespace
}  // namespace captum_krypton
