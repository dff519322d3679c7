// What runs read, laid out for lanes that are outputs side by side.
#pragma once

#include "runs.h"

namespace captum_krypton {
namespace {

// `Apart`: the distance of numbers that are read, known to the compiler where it is not 0.
template <int Apart, typename T>
KRYPTON_INLINE void copy_apart(const T* from, int64_t apart, int64_t count, float* to) {
  const int64_t step = Apart ? Apart : apart;
  for (int64_t t = 0; t < count; ++t) {
    to[t] = load<float>(from + t * step);
  }
}

template <typename T>
void copy_numbers(const T* from, int64_t apart, int64_t count, float* to) {
  switch (apart) {
    case 1:
      return copy_apart<1>(from, apart, count, to);
    case 2:
      return copy_apart<2>(from, apart, count, to);
    default:
      return copy_apart<0>(from, apart, count, to);
  }
}

// Rows of the input as runs read them, channel by channel and widened to float: lines of `pitch`
// columns. Where the outputs have a stride, every line has the columns of one remainder by it. The
// rows that the next row of outputs reads too are still there.
template <typename T>
class Lines {
 public:
  // In the scratch of `lines_scratch`.
  KRYPTON_INLINE Lines(const Convolution& conv, int64_t units, float* scratch)
      : conv_(conv),
        pitch_(lines_pitch(conv, units, kLanes)),
        slots_(lines_slots(conv)),
        held_(reinterpret_cast<int64_t*>(scratch)),
        found_(reinterpret_cast<const float**>(held_ + conv.kernel[0] * slots_)),
        taps_(reinterpret_cast<int64_t*>(found_ + conv.kernel[0] * conv.kernel[1])),
        room_(reinterpret_cast<float*>(taps_ + conv.kernel[2] * conv.source.channels)) {
    int64_t* tap = taps_;
    for (int64_t j = 0; j < conv.kernel[2]; ++j) {
      const int64_t beside = j * conv.dilation[2];
      const int64_t line = beside % conv.stride[2] * conv.source.channels;
      for (int64_t c = 0; c < conv.source.channels; ++c) {
        *tap++ = (line + c) * pitch_ + beside / conv.stride[2];
      }
    }
  }

  // Of the run read last, where each row of taps starts, and what its taps' channels are from
  // there.
  const float* const* rows() const { return found_; }
  const int64_t* taps() const { return taps_; }

  KRYPTON_INLINE void read(const Runs& run) {
    if (run.window != window_ || run.plane != plane_ || run.column != column_ ||
        run.count > count_) {
      begin_plane(run);
    }
    const float** found = found_;
    for (int64_t d = 0; d < conv_.kernel[0]; ++d) {
      const int64_t plane = run.plane * conv_.stride[0] + d * conv_.dilation[0];
      const View<T> cells = view<T>(conv_.source, window_, plane);
      for (int64_t i = 0; i < conv_.kernel[1]; ++i) {
        const int64_t row = run.row * conv_.stride[1] + i * conv_.dilation[1];
        *found++ = read_row(cells, row, d * slots_ + row % slots_);
      }
    }
  }

 private:
  void begin_plane(const Runs& run) {
    window_ = run.window;
    plane_ = run.plane;
    column_ = run.column;
    count_ = run.count;
    for (int64_t slot = 0; slot < conv_.kernel[0] * slots_; ++slot) {
      held_[slot] = -1;
    }
  }

  const float* read_row(const View<T>& cells, int64_t row, int64_t slot) {
    const int64_t channels = conv_.source.channels, stride = conv_.stride[2];
    float* const lines = room_ + slot * stride * channels * pitch_;
    if (held_[slot] != row) {
      held_[slot] = row;
      const int64_t count = count_ + (conv_.kernel[2] - 1) * conv_.dilation[2] / stride;
      const Row<T> read = cells.row(row);
      for (int64_t first = 0; first < stride; ++first) {
        copy(read, column_ * stride + first, count, lines + first * channels * pitch_);
      }
    }
    return lines;
  }

  void copy(const Row<T>& row, int64_t column, int64_t count, float* to) const {
    while (count > 0) {
      const Stretch<T> same = first_stretch(row, column, conv_.stride[2], count);
      for (int64_t c = 0; c < row.channels; ++c) {
        copy_numbers(same.from + c, same.apart, same.count, to + c * pitch_);
      }
      to += same.count;
      column += same.count * conv_.stride[2];
      count -= same.count;
    }
  }

  const Convolution& conv_;
  int64_t pitch_, slots_;
  int64_t* held_;  // rows, by slot
  const float** found_;
  int64_t* taps_;
  float* room_;
  int64_t window_ = -1, plane_ = 0, column_ = 0, count_ = 0;  // of what is held
};

}  // namespace
}  // namespace captum_krypton
