// Matrix product: out (rows, panel) = cells (rows, depth) x panel of weights (depth, panel).
#pragma once

#include "finish.h"
#include "unroll.h"
#include "vector.h"

namespace captum_krypton {
namespace {

// Adds the products of `depth` numbers of every row to its sums, of a panel's first vectors.
template <int Rows, int Vectors>
KRYPTON_INLINE void accumulate(const float* const (&rows)[Rows], int64_t depth, const float* weight,
                               Vector (&sums)[Rows][Vectors]) {
  for (int64_t k = 0; k < depth; ++k) {
    Vector weights[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      weights[v] = load<Vector>(weight + v * kLanes);
    }
    weight += kPanel;
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        sums[row][v] += rows[row][k] * weights[v];
      }
    }
  }
}

// So many products are summed by themselves, and added to the sum of those before. A plain sum of n
// terms has a root mean square error of about sqrt(n / 2) roundings; this one of sqrt((kTerms +
// n / kTerms) / 2).
constexpr int64_t kTerms = 64;

// Adds sums to what was stored of them before, or stores the first.
template <int Vectors>
KRYPTON_INLINE void add_to(float* stored, const Vector (&sums)[Vectors], bool first) {
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) {
    float* const at = stored + v * kLanes;
    store(at, first ? sums[v] : load<Vector>(at) + sums[v]);
  }
}

// Rows lie one after another. A function of its own: its loop needs all registers that there are.
template <int Rows>
__attribute__((noinline)) void multiply_rows(const float* cells, int64_t depth, const float* weight,
                                             float* out, int64_t out_stride) {
  for (int64_t k = 0; k < depth; k += kTerms) {
    Vector sums[Rows][2] = {};
    const float* rows[Rows];
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
      rows[row] = cells + row * depth + k;
    }
    accumulate<Rows, 2>(rows, least(kTerms, depth - k), weight + k * kPanel, sums);
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
      add_to(out + row * out_stride, sums[row], k == 0);
    }
  }
}

// A function of its own: beside it, the loop of the products would have too few registers.
template <int Vectors, typename T>
__attribute__((noinline)) void activate_cells(const float* const* sums, int rows, int64_t channel,
                                              const Finish<T>& finish, T* const* out) {
  for (int row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < Vectors * kLanes; c += kLanes) {
      const int64_t place = channel + c;
      store(out[row] + place, finish.activated(load<Vector>(sums[row] + c), place));
    }
  }
}

// A row is `depth` channels from `offset` of each of `taps` cells, wherever they lie, `pitch`
// places of `cells` apart, and has a place of its own in the output, and one for sums. `first_row`
// and `channel` are those of the panel's first number, for `finish`; without it sums stay where
// they are. Of the panel its first vectors count.
template <int Rows, int Vectors, bool Finished, typename T>
KRYPTON_INLINE void multiply_cells(const float* const* cells, int64_t pitch, int64_t taps,
                                   int64_t depth, int64_t offset, const float* weight,
                                   float* const* sums_of, T* const* out, const Finish<T>& finish,
                                   int64_t first_row, int64_t channel) {
  if (Finished) {  // what `finish` touches lies far apart; it comes while the sums are made
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
      __builtin_prefetch(out[row] + channel, 1);
      if (finish.residual) {
        __builtin_prefetch(finish.residual[first_row + row] + channel);
      }
    }
  }
  Vector sums[Rows][Vectors] = {};
  bool stored = false;
  int64_t terms = 0;  // in `sums`
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t k = 0; k < depth; k += kTerms) {
      if (terms >= kTerms) {
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row) {
          add_to(sums_of[row], sums[row], !stored);
#pragma GCC unroll 2
          for (int v = 0; v < Vectors; ++v) {
            sums[row][v] = Vector{};
          }
        }
        stored = true;
        terms = 0;
      }
      const int64_t count = least(kTerms, depth - k);
      const float* rows[Rows];
#pragma GCC unroll 16
      for (int row = 0; row < Rows; ++row) {
        rows[row] = cells[tap * pitch + row] + offset + k;
      }
      accumulate<Rows, Vectors>(rows, count, weight, sums);
      weight += count * kPanel;
      terms += count;
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      float* const at = sums_of[row] + v * kLanes;
      const Vector sum = stored ? load<Vector>(at) + sums[row][v] : sums[row][v];
      if constexpr (Finished) {
        const int64_t place = channel + v * kLanes;
        const Vector added = finish.add(sum, first_row + row, place);
        if (finish.activation == Activation::kNone) {
          store(out[row] + place, added);
        } else {
          store(at, added);
        }
      } else {
        store(at, sum);
      }
    }
  }
  if (Finished && finish.activation != Activation::kNone) {
    activate_cells<Vectors>(sums_of, Rows, channel, finish, out);
  }
}

struct MultiplyRows {
  const float* cells;
  int64_t rows, depth;
  const float* weight;
  const float* next;  // the panel that follows; none: null
  float* out;
  int64_t out_stride;

  template <int Rows>
  KRYPTON_INLINE void run(int64_t row) const {
    constexpr int64_t line = 16;  // numbers
    const int64_t lines = next ? depth * kPanel / line : 0;
    for (int64_t k = lines * row / rows; k < lines * (row + Rows) / rows; ++k) {
      __builtin_prefetch(next + k * line, 0, 2);  // into the second cache: the first one is full
    }
    multiply_rows<Rows>(cells + row * depth, depth, weight, out + row * out_stride, out_stride);
  }
};

template <int Vectors, bool Finished, typename T>
struct MultiplyCells {
  const float* const* cells;
  int64_t pitch, taps, depth, offset;
  const float* weight;
  float* const* sums;
  T* const* out;
  const Finish<T>& finish;
  int64_t channel;

  template <int Rows>
  KRYPTON_INLINE void run(int64_t row) const {
    multiply_cells<Rows, Vectors, Finished>(cells + row, pitch, taps, depth, offset, weight,
                                            sums + row, out + row, finish, row, channel);
  }
};

}  // namespace
}  // namespace captum_krypton
