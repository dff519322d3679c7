// Walks over what a run reads, channels in the lanes: depthwise convolution and pooling differ in
// the work that they do there.
#pragma once

#include "runs.h"
#include "unroll.h"

namespace captum_krypton {
namespace {

// What a run reads and writes. `Taps`, `Stride`: taps along a row and their stride, known to the
// compiler where they are not 0; then the dilation is 1.
template <typename T>
struct Columns {
  const T* const* cells;  // see `read_columns`
  int64_t pitch, rows, taps, stride, dilation;
  T* out;
  int64_t out_pitch;  // numbers from one output to the next
  int64_t channels;
};

// Numbers of `Outputs` outputs of a run, one vector of channels: rows of taps are read once for all
// of them. `work.tap(number)` gives what belongs to a tap, `work.take(t, tap, number)` takes every
// number that output t reads.
template <typename V, int Outputs, int Taps, int Stride, typename T, typename Work>
KRYPTON_INLINE void read_taps(const Columns<T>& run, int64_t first, int64_t channel, Work& work) {
  const int64_t taps = Taps ? Taps : run.taps;
  const int64_t stride = Stride ? Stride : run.stride;
  for (int64_t i = 0; i < run.rows; ++i) {
    const T* const* const cells = run.cells + i * run.pitch + first * stride;
    if constexpr (Taps != 0) {
      constexpr int kRead = (Outputs - 1) * Stride + Taps;
      V numbers[kRead];
#pragma GCC unroll 16
      for (int k = 0; k < kRead; ++k) {
        numbers[k] = load<V>(cells[k] + channel);
      }
#pragma GCC unroll 16
      for (int j = 0; j < Taps; ++j) {
        const auto tap = work.tap(i * Taps + j);
#pragma GCC unroll 16
        for (int t = 0; t < Outputs; ++t) {
          work.take(t, tap, numbers[t * Stride + j]);
        }
      }
    } else {
      for (int64_t j = 0; j < taps; ++j) {
        const auto tap = work.tap(i * taps + j);
#pragma GCC unroll 16
        for (int t = 0; t < Outputs; ++t) {
          work.take(t, tap, load<V>(cells[t * stride + j * run.dilation] + channel));
        }
      }
    }
  }
}

// A kind of work has a `Block`, the work for `Outputs` outputs and one vector of channels: sums of
// products, largest numbers or sums.
template <typename V, int Outputs, int Taps, int Stride, typename T, typename Kind>
KRYPTON_INLINE void run_channels(const Columns<T>& run, const Kind& kind, int64_t first,
                                 int64_t channel) {
  typename Kind::template Block<V, Outputs> block{kind, channel};
  read_taps<V, Outputs, Taps, Stride>(run, first, channel, block);
#pragma GCC unroll 16
  for (int t = 0; t < Outputs; ++t) {
    store(run.out + (first + t) * run.out_pitch + channel, block.result(t, first + t));
  }
}

template <int Taps, int Stride, typename T, typename Kind>
struct RunOutputs {
  const Columns<T>& columns;
  const Kind& kind;

  template <int Outputs>
  KRYPTON_INLINE void run(int64_t first) const {
    const int64_t channels = columns.channels;
    if (channels < kLanes) {
      for (int64_t c = 0; c < channels; ++c) {
        run_channels<float, Outputs, Taps, Stride>(columns, kind, first, c);
      }
      return;
    }
    for (int64_t c = 0; c < channels; c += kLanes) {  // the last ones twice
      run_channels<Vector, Outputs, Taps, Stride>(columns, kind, first,
                                                  least(c, channels - kLanes));
    }
  }
};

template <int Taps, int Stride, typename T, typename Kind>
void run_outputs(const Columns<T>& run, int64_t count, const Kind& kind) {
  constexpr int kSideBySide =
      Taps == 3 && Stride == 2 ? 2 : 4;  // outputs that share what they read
  for_rows<kSideBySide>(0, count, RunOutputs<Taps, Stride, T, Kind>{run, kind});
}

template <typename T, typename Kind>
KRYPTON_INLINE void run_columns(const Columns<T>& run, int64_t count, const Kind& kind) {
  const int64_t shape = run.dilation == 1 ? 10 * run.taps + run.stride : 0;
  switch (shape) {
    case 31:
      return run_outputs<3, 1>(run, count, kind);
    case 32:
      return run_outputs<3, 2>(run, count, kind);
    case 51:
      return run_outputs<5, 1>(run, count, kind);
    case 52:
      return run_outputs<5, 2>(run, count, kind);
    case 71:
      return run_outputs<7, 1>(run, count, kind);
    default:
      return run_outputs<0, 0>(run, count, kind);
  }
}

template <typename Call, typename T>
KRYPTON_INLINE Columns<T> columns(const Call& call, const Runs& run, const T** cells) {
  const int64_t pitch = read_columns(call, run, cells);
  return {cells,
          pitch,
          call.kernel[0] * call.kernel[1],
          call.kernel[2],
          call.stride[2],
          call.dilation[2],
          run.data<T>(),
          call.out.step[2] * call.out.channels,
          call.out.channels};
}

}  // namespace
}  // namespace captum_krypton
