// The kernels of convolve_patches, pool_patches and join_patches, for vectors of KRYPTON_LANES
// floats; see vector.h.
#pragma once

#include "../kernels.h"
#include "vector.h"
#include "winograd.h"

namespace captum_krypton {
namespace {

// --- Output cells, and the cells that they read.

// Output cells side by side, in one row of one window: `count` of them from `column`. The units of
// a call in runs: `for (Runs run(out, begin, end); run.count; run.next())`.
class Runs {
 public:
  int64_t window, row, column, count;
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
    const int64_t width = out.extent[2 * window + 1];
    row = (begin - out.before[window]) / width;
    column = (begin - out.before[window]) % width;
    count = least(left_, width - column);
  }

  KRYPTON_INLINE void next() {
    unit += count;
    left_ -= count;
    column = 0;
    if (++row == out_.extent[2 * window]) {
      row = 0;
      do {
        ++window;
      } while (left_ && out_.before[window] == out_.before[window + 1]);
    }
    count = left_ ? least(left_, out_.extent[2 * window + 1]) : 0;
  }

  KRYPTON_INLINE float* data() const {
    return out_.data + ((window * out_.height + row) * out_.width + column) * out_.channels;
  }

 private:
  const Output& out_;
  int64_t left_;
};

// The distinct cells that a run reads: for each row of taps, those of all columns from the first to
// the last. Tap (i, j) of output t is `rows[i * pitch + t * stride[1] + j * dilation[1]]`.
template <typename Call>
KRYPTON_INLINE int64_t read_columns(const Call& call, const Runs& run, const float** rows) {
  const int64_t pitch =
      (run.count - 1) * call.stride[1] + (call.kernel[1] - 1) * call.dilation[1] + 1;
  const View cells = view(call.source, run.window);
  for (int64_t i = 0; i < call.kernel[0]; ++i) {
    const Row row = cells.row(run.row * call.stride[0] + i * call.dilation[0]);
    for (int64_t k = 0; k < pitch; ++k) {
      *rows++ = row.at(run.column * call.stride[1] + k);
    }
  }
  return pitch;
}

// What is added to a run's cells, where anything is.
KRYPTON_INLINE void read_residual(const Convolution& conv, const Runs& run, const float** cells) {
  if (conv.residual) {
    const Row row = view(*conv.residual, run.window).row(run.row);
    for (int64_t t = 0; t < run.count; ++t) {
      cells[t] = row.at(run.column + t);
    }
  }
}

// --- Direct convolution: every output cell is a row of the product, its taps one after another.

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
  const int64_t count = conv.kernel[0] * conv.kernel[1];
  const int64_t units = end - begin;
  const int64_t depth = conv.source.channels / conv.groups;
  const int64_t out_each = conv.out.channels / conv.groups;
  const float** const cells = reinterpret_cast<const float**>(scratch);
  const float** const residual = cells + units * count;
  float** const out = reinterpret_cast<float**>(scratch) + units * (count + 1);
  float** const last = out + units;  // a panel that is not full goes through memory of our own
  float* const sums = scratch + 2 * units * (count + 3);
  for (Runs run(conv.out, begin, end); run.count; run.next()) {
    const View read = view(conv.source, run.window);
    const float** const first = cells + run.unit * count;
    for (int64_t i = 0; i < conv.kernel[0]; ++i) {
      const Row row = read.row(run.row * conv.stride[0] + i * conv.dilation[0]);
      for (int64_t j = 0; j < conv.kernel[1]; ++j) {
        const float** const tap = first + i * conv.kernel[1] + j;
        const int64_t column = run.column * conv.stride[1] + j * conv.dilation[1];
        for (int64_t t = 0; t < run.count; ++t) {
          tap[t * count] = row.at(column + t * conv.stride[1]);
        }
      }
    }
    read_residual(conv, run, residual + run.unit);
    float* const to = run.data();
    for (int64_t t = 0; t < run.count; ++t) {
      out[run.unit + t] = to + t * conv.out.channels;
      last[run.unit + t] = sums + (run.unit + t) * kPanel;
    }
  }
  const Finish finish{conv.bias, conv.residual ? residual : nullptr, conv.low, conv.high,
                      conv.activation};
  const float* weight = conv.weight;
  for (int64_t group = 0; group < conv.groups; ++group) {
    const int64_t offset = group * depth;
    const int64_t first = group * out_each;
    for (int64_t k = 0; k < out_each; k += kPanel) {
      const Panel panel{cells, count, depth, offset, weight, first + k, out_each - k};
      if (panel.left > kLanes) {
        panel.run<kRows, 2>(units, last, finish, out);
      } else {
        panel.run<kNarrowRows, 1>(units, last, finish, out);
      }
      weight += count * depth * kPanel;
    }
  }
}

// --- Depthwise convolution and pooling: channels lie in the lanes.

// What a run reads and writes. `Taps`, `Stride`: taps along a row and their stride, known to the
// compiler where they are not 0; then the dilation is 1.
struct Columns {
  const float* const* cells;  // see `read_columns`
  int64_t pitch, rows, taps, stride, dilation;
  float* out;
  int64_t channels;
};

// Numbers of `Outputs` outputs of a run, one vector of channels: rows of taps are read once for all
// of them. `work.tap(number)` gives what belongs to a tap, `work.take(t, tap, number)` takes every
// number that output t reads.
template <typename V, int Outputs, int Taps, int Stride, typename Work>
KRYPTON_INLINE void read_taps(const Columns& run, int64_t first, int64_t channel, Work& work) {
  const int64_t taps = Taps ? Taps : run.taps;
  const int64_t stride = Stride ? Stride : run.stride;
  for (int64_t i = 0; i < run.rows; ++i) {
    const float* const* const cells = run.cells + i * run.pitch + first * stride;
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

// The kinds of work: sums of products, largest numbers, sums.
struct Depthwise {
  const float* weight;
  Finish finish;
  int64_t channels;

  template <typename V, int Outputs>
  struct Block {
    const Depthwise& all;
    int64_t channel;
    V sums[Outputs] = {};

    KRYPTON_INLINE V tap(int64_t number) const {
      return load<V>(all.weight + number * all.channels + channel);
    }
    KRYPTON_INLINE void take(int t, V weight, V number) { sums[t] += number * weight; }
    KRYPTON_INLINE V result(int t, int64_t output) const {
      return all.finish.apply(sums[t], output, channel);
    }
  };
};

KRYPTON_INLINE void take_larger(float& most, float value) {
  most = value > most || value != value ? value : most;
}

// A number that is not one stays, as in ATen.
KRYPTON_INLINE void take_larger(Vector& most, Vector value) {
  most = value > most ? value : most;
  most = value == value ? most : value;
}

struct Maximum {
  float lowest;

  template <typename V, int Outputs>
  struct Block {
    V most[Outputs];

    KRYPTON_INLINE Block(const Maximum& all, int64_t) {
      for (V& value : most) {
        value = V{} + all.lowest;
      }
    }
    KRYPTON_INLINE int tap(int64_t) const { return 0; }
    KRYPTON_INLINE void take(int t, int, V number) { take_larger(most[t], number); }
    KRYPTON_INLINE V result(int t, int64_t) const { return most[t]; }
  };
};

struct Average {
  float scale;

  template <typename V, int Outputs>
  struct Block {
    const Average& all;
    int64_t channel;
    V sums[Outputs] = {};

    KRYPTON_INLINE int tap(int64_t) const { return 0; }
    KRYPTON_INLINE void take(int t, int, V number) { sums[t] += number; }
    KRYPTON_INLINE V result(int t, int64_t) const { return sums[t] * all.scale; }
  };
};

template <typename V, int Outputs, int Taps, int Stride, typename Kind>
KRYPTON_INLINE void run_channels(const Columns& run, const Kind& kind, int64_t first,
                                 int64_t channel) {
  typename Kind::template Block<V, Outputs> block{kind, channel};
  read_taps<V, Outputs, Taps, Stride>(run, first, channel, block);
#pragma GCC unroll 16
  for (int t = 0; t < Outputs; ++t) {
    store(run.out + (first + t) * run.channels + channel, block.result(t, first + t));
  }
}

template <int Taps, int Stride, typename Kind>
struct RunOutputs {
  const Columns& columns;
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

template <int Taps, int Stride, typename Kind>
void run_outputs(const Columns& run, int64_t count, const Kind& kind) {
  constexpr int kSideBySide =
      Taps == 3 && Stride == 2 ? 2 : 4;  // outputs that share what they read
  for_rows<kSideBySide>(0, count, RunOutputs<Taps, Stride, Kind>{run, kind});
}

template <typename Kind>
KRYPTON_INLINE void run_columns(const Columns& run, int64_t count, const Kind& kind) {
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

template <typename Call>
KRYPTON_INLINE Columns columns(const Call& call, const Runs& run, const float** cells) {
  const int64_t pitch = read_columns(call, run, cells);
  return {cells,          pitch,
          call.kernel[0], call.kernel[1],
          call.stride[1], call.dilation[1],
          run.data(),     call.out.channels};
}

void depthwise(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  const float** const residual = reinterpret_cast<const float**>(scratch);
  const float** const cells = residual + (end - begin);
  for (Runs run(conv.out, begin, end); run.count; run.next()) {
    read_residual(conv, run, residual);
    const Finish finish{conv.bias, conv.residual ? residual : nullptr, conv.low, conv.high,
                        conv.activation};
    run_columns(columns(conv, run, cells), run.count,
                Depthwise{conv.weight, finish, conv.out.channels});
  }
}

template <typename Kind>
KRYPTON_INLINE void pool(const Pooling& call, int64_t begin, int64_t end, float* scratch,
                         const Kind& kind) {
  const float** const cells = reinterpret_cast<const float**>(scratch);
  for (Runs run(call.out, begin, end); run.count; run.next()) {
    run_columns(columns(call, run, cells), run.count, kind);
  }
}

void maximum(const Pooling& call, int64_t begin, int64_t end, float* scratch) {
  pool(call, begin, end, scratch, Maximum{-__builtin_inff()});
}

void average(const Pooling& call, int64_t begin, int64_t end, float* scratch) {
  pool(call, begin, end, scratch, Average{call.scale});
}

// --- Joining: the channels of every cell come from one source after another.

KRYPTON_INLINE void join_cell(const Joining& call, const float* from, int64_t channels,
                              int64_t first, float* to) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    Vector value = load<Vector>(from + c);
    if (call.scale) {
      value = value * load<Vector>(call.scale + first + c) + load<Vector>(call.shift + first + c);
    }
    clamp(value, call.low, call.high);
    store(to + first + c, value);
  }
  for (; c < channels; ++c) {
    float value = from[c];
    if (call.scale) {
      value = value * call.scale[first + c] + call.shift[first + c];
    }
    clamp(value, call.low, call.high);
    to[first + c] = value;
  }
}

void join(const Joining& call, int64_t begin, int64_t end, float*) {
  for (Runs run(call.out, begin, end); run.count; run.next()) {
    float* const to = run.data();
    int64_t first = 0;
    for (int64_t number = 0; number < call.count; ++number) {
      const Source& source = call.sources[number];
      const Row row = view(source, run.window).row(run.row);
      for (int64_t t = 0; t < run.count; ++t) {
        join_cell(call, row.at(run.column + t), source.channels, first, to + t * call.out.channels);
      }
      first += source.channels;
    }
  }
}

constexpr Kernels kKernels{KRYPTON_NAME, kPanel,   kLanes,   &winograd, &direct,
                           &depthwise,   &maximum, &average, &join};

}  // namespace
}  // namespace captum_krypton
