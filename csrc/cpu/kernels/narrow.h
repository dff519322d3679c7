// Direct convolution to a few output channels, of which a panel would leave most lanes idle.
#pragma once

#include "direct_cells.h"
#include "finish.h"
#include "lanes.h"
#include "lines.h"
#include "unroll.h"

namespace captum_krypton {
namespace {

constexpr int kMostNarrow = kPanel / 8;  // output channels, as in `is_narrow`

// The sums of a block, those of a cell's channels side by side, and what finishes them: whole
// periods of as many vectors as there are channels, in which a lane's channel is always the same.
template <typename T>
class NarrowSums {
 public:
  float* const sums;

  // In the scratch of `narrow_sums_scratch`.
  KRYPTON_INLINE NarrowSums(const Convolution& conv, int64_t units, float* scratch)
      : sums(scratch),
        conv_(conv),
        units_(units),
        channels_(conv.out.channels),
        period_(channels_ * kLanes),
        added_(sums + units * channels_ + period_),
        bias_(added_ + units * channels_ + period_),
        slope_(bias_ + period_) {}

  // `residual` and `out` are those of every unit.
  KRYPTON_INLINE void finish(const T* const* residual, T* const* out) const {
    repeat(conv_.ending.bias, bias_);
    repeat(conv_.ending.slope, slope_);
    if (conv_.ending.residual) {
      for (int64_t unit = 0; unit < units_; ++unit) {
        for (int64_t k = 0; k < channels_; ++k) {
          added_[unit * channels_ + k] = load<float>(residual[unit] + k);
        }
      }
    }
    for_outputs<kMostNarrow>(static_cast<int>(channels_), Write{*this, out});
  }

 private:
  struct Write {
    const NarrowSums& all;
    T* const* out;

    template <int Channels>
    KRYPTON_INLINE void run() const {
      if constexpr (Channels > 0) {
        const T* const made = all.finished();
        for (int64_t unit = 0; unit < all.units_; ++unit) {
          __builtin_memcpy(out[unit], made + unit * Channels, Channels * sizeof(T));
        }
      }
    }
  };

  // The numbers as they are stored, in the place of the sums.
  __attribute__((noinline)) T* finished() const {
    T* const made = reinterpret_cast<T*>(sums);
    const float* added = added_;  // to the period's sums
    Finish<float> finish(conv_.ending, &added);
    finish.bias = conv_.ending.bias ? bias_ : nullptr;
    finish.slope = conv_.ending.slope ? slope_ : nullptr;
    for (int64_t first = 0; first < units_ * channels_; first += period_, added += period_) {
      for (int64_t place = 0; place < period_; place += kLanes) {
        const Vector sum = load<Vector>(sums + first + place);
        store(made + first + place, finish.apply(sum, 0, place));
      }
    }
    return made;
  }

  // The numbers of all channels, for a period's lanes.
  void repeat(const float* of_channels, float* to) const {
    if (of_channels) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        for (int64_t k = 0; k < channels_; ++k) {
          *to++ = of_channels[k];
        }
      }
    }
  }

  const Convolution& conv_;
  int64_t units_, channels_, period_;
  float *added_, *bias_, *slope_;
};

// The lanes are input channels, of which there are as many at least.
template <int Channels>
struct NarrowCells {
  const float* const* cells;
  int64_t units, taps, depth;
  const float* weight;
  float* sums;

  template <int Rows>
  KRYPTON_INLINE void run(int64_t first) const {
    Vector lanes[Rows * Channels] = {};
    for (int64_t tap = 0; tap < taps; ++tap) {
      add_products<Rows, Channels>(cells + tap * units + first, depth, weight + tap * depth,
                                   taps * depth, lanes);
    }
    store_totals(lanes, sums + first * Channels);
  }
};

// A block of cells, for all storages.
struct NarrowBlock {
  const float* const* cells;
  int64_t units, taps, depth;
  const float* weight;
  float* sums;

  __attribute__((noinline)) void add_up(int channels) const {
    for_outputs<kMostNarrow>(channels, *this);
  }

  template <int Channels>
  KRYPTON_INLINE void run() const {
    if constexpr (Channels > 0) {
      // As many sums as hide how long an addition takes, and are totalled at once.
      constexpr int kSums = KRYPTON_LANES < 8 ? 8 : KRYPTON_LANES;
      constexpr int kSideBySide = kSums / Channels < 8 ? kSums / Channels : 8;
      for_rows<kSideBySide>(0, units,
                            NarrowCells<Channels>{cells, units, taps, depth, weight, sums});
    }
  }
};

template <typename T>
void narrow_cells(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  const int64_t units = end - begin;
  const NarrowSums<T> made(conv, units, scratch);
  const DirectCells<T> all(conv, begin, end, scratch + narrow_sums_scratch(conv, units, kLanes));
  NarrowBlock{all.cells, units, all.taps, conv.source.channels, conv.weight, made.sums}.add_up(
      static_cast<int>(conv.out.channels));
  made.finish(all.residual, all.out);
}

// The lanes are outputs side by side. What those past the run's end make lies where the next run's
// sums come, or behind all of them.
template <int Channels>
struct NarrowVectors {
  const float* const* lines;  // of every row of taps
  const int64_t* taps;        // from there, by tap and channel
  int64_t rows, each;         // rows, and taps and channels of one
  const float* weight;
  float* sums;  // of the run

  template <int Vectors>
  KRYPTON_INLINE void run(int64_t vector) const {
    const float* weights = weight;
    Vector all[Vectors][Channels] = {};
    for (int64_t row = 0; row < rows; ++row) {
      const float* const line = lines[row] + vector * kLanes;
      Vector parts[Vectors][Channels] = {};  // short sums lose less
      for (int64_t tap = 0; tap < each; ++tap, ++weights) {
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) {
          const Vector cells = load<Vector>(line + taps[tap] + v * kLanes);
#pragma GCC unroll 4
          for (int k = 0; k < Channels; ++k) {
            parts[v][k] += weights[k * rows * each] * cells;
          }
        }
      }
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
#pragma GCC unroll 4
        for (int k = 0; k < Channels; ++k) {
          all[v][k] += parts[v][k];
        }
      }
    }
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      put(all[v], sums + (vector + v) * kLanes * Channels);
    }
  }

  // Each cell's channels side by side.
  KRYPTON_INLINE void put(const Vector (&of_channels)[Channels], float* to) const {
    float made[Channels][kLanes];
#pragma GCC unroll 4
    for (int k = 0; k < Channels; ++k) {
      store(made[k], of_channels[k]);
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      for (int k = 0; k < Channels; ++k) {
        to[lane * Channels + k] = made[k][lane];
      }
    }
  }
};

// A run, for all storages.
struct NarrowRun {
  const Convolution& conv;
  const float* const* lines;
  const int64_t* taps;
  int64_t count;
  float* sums;

  __attribute__((noinline)) void add_up() const {
    for_outputs<kMostNarrow>(static_cast<int>(conv.out.channels), *this);
  }

  template <int Channels>
  KRYPTON_INLINE void run() const {
    if constexpr (Channels > 0) {
      for_rows<kRows / Channels>(
          0, (count + kLanes - 1) / kLanes,
          NarrowVectors<Channels>{lines, taps, conv.kernel[0] * conv.kernel[1],
                                  conv.kernel[2] * conv.source.channels, conv.weight, sums});
    }
  }
};

template <typename T>
void narrow_runs(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  const int64_t units = end - begin, channels = conv.out.channels;
  const NarrowSums<T> made(conv, units, scratch);
  const T** const residual =
      reinterpret_cast<const T**>(scratch + narrow_sums_scratch(conv, units, kLanes));
  T** const out = const_cast<T**>(residual + units);
  Lines<T> lines(conv, units, reinterpret_cast<float*>(out + units));
  for (Runs run(conv.out, begin, end); run.count; run.next()) {
    lines.read(run);
    NarrowRun{conv, lines.rows(), lines.taps(), run.count, made.sums + run.unit * channels}
        .add_up();
    read_residual(conv, run, residual + run.unit);
    T* const to = run.data<T>();
    for (int64_t t = 0; t < run.count; ++t) {
      out[run.unit + t] = to + t * conv.out.step[2] * channels;
    }
  }
  made.finish(residual, out);
}

template <typename T>
void narrow(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  if (conv.source.channels < kLanes) {
    narrow_runs<T>(conv, begin, end, scratch);
  } else {
    narrow_cells<T>(conv, begin, end, scratch);
  }
}

}  // namespace
}  // namespace captum_krypton
