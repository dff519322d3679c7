// Direct convolution to a few output channels, of which a panel would leave most lanes idle.
#pragma once

#include "direct_cells.h"
#include "finish.h"
#include "unroll.h"

namespace captum_krypton {
namespace {

// Adds up the lanes of every output, and to them `rest`. A function of its own: beside it, the loop
// of the products would have too few registers.
template <int Channels, typename T>
__attribute__((noinline)) void finish_lanes(const float* lanes, const float* rest, int rows,
                                            const Finish<T>& finish, int64_t first, int64_t channel,
                                            T* const* out) {
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < Channels; ++k, lanes += kLanes, ++rest) {
      const float sum = total<KRYPTON_LANES>(lanes) + *rest;
      store(out[row] + channel + k, finish.apply(sum, first + row, channel + k));
    }
  }
}

// The lanes are input channels; every output has sums of its own, which are added up at last.
template <int Channels, typename T>
struct NarrowCells {
  const float* const* cells;
  int64_t taps, depth;
  const float* weight;  // of the first channel
  int64_t channel;
  const Finish<T>& finish;
  T* const* out;

  template <int Rows>
  KRYPTON_INLINE void run(int64_t first) const {
    const int64_t each = taps * depth;
    Vector lanes[Rows][Channels] = {};
    float rest[Rows][Channels] = {};
    const float* of_tap = weight;
    for (int64_t tap = 0; tap < taps; ++tap, of_tap += depth) {
      const float* read[Rows];
#pragma GCC unroll 4
      for (int row = 0; row < Rows; ++row) {
        read[row] = cells[(first + row) * taps + tap];
      }
      int64_t c = 0;
      for (; c + kLanes <= depth; c += kLanes) {
        Vector weights[Channels];
#pragma GCC unroll 2
        for (int k = 0; k < Channels; ++k) {
          weights[k] = load<Vector>(of_tap + k * each + c);
        }
#pragma GCC unroll 4
        for (int row = 0; row < Rows; ++row) {
          const Vector cell = load<Vector>(read[row] + c);
#pragma GCC unroll 2
          for (int k = 0; k < Channels; ++k) {
            lanes[row][k] += cell * weights[k];
          }
        }
      }
      for (; c < depth; ++c) {
#pragma GCC unroll 4
        for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 2
          for (int k = 0; k < Channels; ++k) {
            rest[row][k] += read[row][c] * of_tap[k * each + c];
          }
        }
      }
    }
    float stored[Rows * Channels * kLanes];
#pragma GCC unroll 4
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 2
      for (int k = 0; k < Channels; ++k) {
        store(stored + (row * Channels + k) * kLanes, lanes[row][k]);
      }
    }
    finish_lanes<Channels>(stored, rest[0], Rows, finish, first, channel, out + first);
  }
};

template <typename T>
void narrow_cells(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  constexpr int kSideBySide = 4;  // outputs that share the weights
  const DirectCells<T> all(conv, begin, end, scratch);
  const int64_t depth = conv.source.channels, each = all.taps * depth;
  const Finish<T> finish(conv.ending, all.residual);
  int64_t k = 0;
  for (; k + 2 <= conv.out.channels; k += 2) {
    for_rows<kSideBySide>(
        0, end - begin,
        NarrowCells<2, T>{all.cells, all.taps, depth, conv.weight + k * each, k, finish, all.out});
  }
  if (k < conv.out.channels) {
    for_rows<kSideBySide>(
        0, end - begin,
        NarrowCells<1, T>{all.cells, all.taps, depth, conv.weight + k * each, k, finish, all.out});
  }
}

// The lanes are outputs side by side, of which there may be more than a run has. What they read is
// laid out channel by channel: rows of `pitch` columns.
template <typename T>
struct NarrowRun {
  const Convolution& conv;
  const float* columns;  // (rows of taps, channels, pitch)
  int64_t pitch, count;
  const Finish<T>& finish;
  T* out;

  template <int Channels>
  KRYPTON_INLINE void run() const {
    if constexpr (Channels > 0) {
      for (int64_t first = 0; first < count; first += kLanes) {
        add_up<Channels>(first);
      }
    }
  }

  template <int Channels>
  KRYPTON_INLINE void add_up(int64_t first) const {
    const int64_t depth = conv.source.channels, taps = conv.kernel[2];
    const int64_t rows = conv.kernel[0] * conv.kernel[1], each = rows * taps * depth;
    Vector sums[Channels] = {};
    const float* weight = conv.weight;
    const float* line = columns + first;
    for (int64_t row = 0; row < rows; ++row, weight += taps * depth) {
      Vector parts[Channels] = {};  // short sums lose less
      for (int64_t c = 0; c < depth; ++c, line += pitch) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const Vector cells = load<Vector>(line + tap * conv.dilation[2]);
#pragma GCC unroll 8
          for (int k = 0; k < Channels; ++k) {
            parts[k] += weight[k * each + tap * depth + c] * cells;
          }
        }
      }
#pragma GCC unroll 8
      for (int k = 0; k < Channels; ++k) {
        sums[k] += parts[k];
      }
    }
    float made[Channels][kLanes];
#pragma GCC unroll 8
    for (int k = 0; k < Channels; ++k) {
      store(made[k], sums[k]);
    }
    const int64_t apart = conv.out.step[2] * conv.out.channels;
    for (int64_t lane = 0; lane < least(kLanes, count - first); ++lane) {
      for (int k = 0; k < Channels; ++k) {
        store(out + (first + lane) * apart + k, finish.apply(made[k][lane], first + lane, k));
      }
    }
  }
};

template <typename T>
void narrow_runs(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  const int64_t units = end - begin, depth = conv.source.channels;
  const int64_t beside = (conv.kernel[2] - 1) * conv.dilation[2];  // columns besides the first's
  const int64_t pitch = narrow_pitch(conv, units, kLanes);
  const T** const residual = reinterpret_cast<const T**>(scratch);
  const T** const cells = residual + units;
  float* const columns = scratch + 2 * (units + pitch);
  for (Runs run(conv.out, begin, end); run.count; run.next()) {
    float* to = columns;
    for (int64_t d = 0; d < conv.kernel[0]; ++d) {
      const View<T> read = view<T>(conv.source, run.window, run.plane + d * conv.dilation[0]);
      for (int64_t i = 0; i < conv.kernel[1]; ++i) {
        const int64_t count = run.count + beside;
        read_cells(read.row(run.row + i * conv.dilation[1]), run.column, 1, count, cells, 1);
        for (int64_t c = 0; c < depth; ++c, to += pitch) {
          for (int64_t t = 0; t < count; ++t) {
            to[t] = load<float>(cells[t] + c);
          }
        }
      }
    }
    read_residual(conv, run, residual);
    const Finish<T> finish(conv.ending, residual);
    constexpr int kMost = kPanel / 8;  // as in `is_narrow`
    for_outputs<kMost>(static_cast<int>(conv.out.channels),
                       NarrowRun<T>{conv, columns, pitch, run.count, finish, run.data<T>()});
  }
}

template <typename T>
void narrow(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  const bool side_by_side = conv.stride[0] == 1 && conv.stride[1] == 1 && conv.stride[2] == 1;
  if (side_by_side && conv.source.channels < kLanes) {
    narrow_runs<T>(conv, begin, end, scratch);
  } else {
    narrow_cells<T>(conv, begin, end, scratch);
  }
}

}  // namespace
}  // namespace captum_krypton
