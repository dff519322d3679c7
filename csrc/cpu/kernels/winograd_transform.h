// The transforms of Winograd's algorithm, of a tile's input and of its output.
#pragma once

#include "finish.h"
#include "unroll.h"
#include "winograd_points.h"

namespace captum_krypton {
namespace {

// Adds products to a sum that may not have begun.
struct Sum {
  Vector value{};
  bool begun = false;

  KRYPTON_INLINE void add(float factor, Vector number) {
    if (factor != 0) {
      value = begun ? value + factor * number : factor * number;
      begun = true;
    }
  }
};

template <int Taps, int Outputs>
struct Transform {
  static constexpr int kFinite = finite<Taps>(Outputs), kPoints = points<Taps>(Outputs);
  static constexpr bool kPaired = kFinite % 2 == 1;  // every point but 0 with its negative
  static constexpr Matrix kInput = input_matrix<Taps, Outputs>();
  static constexpr Matrix kOutput = output_matrix<Taps, Outputs>();

  // Point i from the numbers first, first + step and so on.
  static KRYPTON_INLINE Vector at_point(int i, const Vector* d, int first, int step) {
    Sum sum;
#pragma GCC unroll 8
    for (int k = first; k < kPoints; k += step) {
      sum.add(kInput.at[i][k], d[k]);
    }
    return sum.value;
  }

  static KRYPTON_INLINE void input(const Vector* d, Vector* r) {
    r[0] = at_point(0, d, 0, 1);
#pragma GCC unroll 8
    for (int i = 1; i < kFinite; i += 1 + kPaired) {
      if (kPaired) {  // they differ in the signs of the odd powers
        const Vector even = at_point(i, d, 0, 2), odd = at_point(i, d, 1, 2);
        r[i] = even + odd;
        r[i + 1] = even - odd;
      } else {
        r[i] = at_point(i, d, 0, 1);
      }
    }
    r[kPoints - 1] = at_point(kPoints - 1, d, 0, 1);
  }

  static KRYPTON_INLINE void output(const Vector* m, Vector* y) {
#pragma GCC unroll 8
    for (int k = 0; k < Outputs; ++k) {
      Sum sum;
      sum.add(kOutput.at[k][0], m[0]);
#pragma GCC unroll 8
      for (int i = 1; i < kFinite; i += 2) {
        const bool alone = i + 1 == kFinite;
        sum.add(kOutput.at[k][i], alone ? m[i] : k % 2 == 0 ? m[i] + m[i + 1] : m[i] - m[i + 1]);
      }
      y[k] = k == Outputs - 1 ? sum.value + m[kPoints - 1] : sum.value;
    }
  }
};

template <int Taps>
struct Transform<Taps, 0> {
  static KRYPTON_INLINE void input(const Vector* d, Vector* r) { r[0] = d[0]; }
  static KRYPTON_INLINE void output(const Vector* m, Vector* y) { y[0] = m[0]; }
};

// The two directions of a transform. The squares of an input's numbers are added up on the way.
template <int Taps>
struct Input {
  static constexpr bool kMeasured = true;
  static constexpr int made(int outputs) { return points<Taps>(outputs); }
  template <int Outputs>
  static KRYPTON_INLINE void apply(const Vector* from, Vector* to) {
    Transform<Taps, Outputs>::input(from, to);
  }
};

template <int Taps>
struct Inverse {
  static constexpr bool kMeasured = false;
  static constexpr int made(int outputs) { return results(outputs); }
  template <int Outputs>
  static KRYPTON_INLINE void apply(const Vector* from, Vector* to) {
    Transform<Taps, Outputs>::output(from, to);
  }
};

// A transform along the first axis, of all numbers of the second.
template <int Taps, typename Direction, int Pitch>
struct TransformRows {
  const float* const* from;  // Pitch from one row to the next
  int columns;
  int64_t channel;
  Vector (&half)[kMostPoints][kMostPoints];
  Vector& squares;

  template <int Outputs>
  KRYPTON_INLINE void run() const {
    for (int j = 0; j < columns; ++j) {
      Vector read[kMostPoints], made[kMostPoints];
      for (int i = 0; i < points<Taps>(Outputs); ++i) {
        read[i] = load<Vector>(from[i * Pitch + j] + channel);
      }
      if (Direction::kMeasured) {  // by columns: one sum would wait for itself
        Vector own = read[0] * read[0];
        for (int i = 1; i < points<Taps>(Outputs); ++i) {
          own += read[i] * read[i];
        }
        squares += own;
      }
      Direction::template apply<Outputs>(read, made);
      for (int i = 0; i < Direction::made(Outputs); ++i) {
        half[i][j] = made[i];
      }
    }
  }
};

// The second axis; `put(i, j, number)` takes what it makes.
template <typename Direction, typename Put>
struct TransformColumns {
  const Vector (&half)[kMostPoints][kMostPoints];
  int rows;
  const Put& put;

  template <int Outputs>
  KRYPTON_INLINE void run() const {
    for (int i = 0; i < rows; ++i) {
      Vector made[kMostPoints];
      Direction::template apply<Outputs>(half[i], made);
      for (int j = 0; j < Direction::made(Outputs); ++j) {
        put(i, j, made[j]);
      }
    }
  }
};

// Both axes of one vector of channels: rows x columns numbers from `from`. Gives the sums of their
// squares, of an input.
template <int Taps, typename Direction, int Pitch, typename Put>
KRYPTON_INLINE Vector transform(int height, int width, const float* const* from, int64_t channel,
                                const Put& put) {
  constexpr int most = group_outputs(Taps);
  Vector half[kMostPoints][kMostPoints], squares{};
  for_outputs<most>(height, TransformRows<Taps, Direction, Pitch>{from, points<Taps>(width),
                                                                  channel, half, squares});
  for_outputs<most>(width, TransformColumns<Direction, Put>{half, Direction::made(height), put});
  return squares;
}

struct PutPoint {
  float* const* to;  // by point
  int64_t at;

  KRYPTON_INLINE void operator()(int i, int j, Vector number) const {
    store(to[i * kMostPoints + j] + at, number);
  }
};

// Gives the sums of the numbers' squares. Functions of their own, for all storages.
template <int Taps, int Pitch>
__attribute__((noinline)) Vector transform_input(int height, int width, const float* const* from,
                                                 int64_t channel, float* const* to, int64_t at) {
  return transform<Taps, Input<Taps>, Pitch>(height, width, from, channel, PutPoint{to, at});
}

struct PutOutput {
  Vector (&made)[kMostOutputs][kMostOutputs];

  KRYPTON_INLINE void operator()(int i, int j, Vector number) const { made[i][j] = number; }
};

template <int Taps>
__attribute__((noinline)) void transform_back(int height, int width, const float* const* from,
                                              int64_t channel,
                                              Vector (&made)[kMostOutputs][kMostOutputs]) {
  transform<Taps, Inverse<Taps>, kMostPoints>(height, width, from, channel, PutOutput{made});
}

}  // namespace
}  // namespace captum_krypton
