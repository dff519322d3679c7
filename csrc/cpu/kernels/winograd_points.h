// Winograd's algorithm F(m, r) along one axis (Lavin and Gray 2016): the points that it
// interpolates at, and the matrices of its transforms; see ../winograd_sizes.h. An axis of one tap
// has one point and one output; m = 0 stands for it.
#pragma once

#include "vector.h"

namespace captum_krypton {
namespace {

constexpr int kMostPoints = group_points(4);

// A point of an axis by its number; the last number is infinity's.
template <int Taps>
constexpr double place(int number) {
  const double* const pairs = Taps == 4 ? kPairsOfFour : kPairsOfThree;
  return number == 0 ? 0 : (number % 2 ? 1 : -1) * pairs[(number - 1) / 2];
}

// Finite points, all points and results of F(m, r).
template <int Taps>
constexpr int finite(int outputs) {
  return outputs + Taps - 2;
}
template <int Taps>
constexpr int points(int outputs) {
  return outputs == 0 ? 1 : outputs + Taps - 1;
}
constexpr int results(int outputs) { return outputs == 0 ? 1 : outputs; }

// The number that point `i` of F(m, r) has among all points of an axis.
template <int Taps>
constexpr int point(int outputs, int i) {
  return outputs == 0 || i < finite<Taps>(outputs) ? i : group_points(Taps) - 1;
}

// The least m, less one, for which F(m, r) uses a point.
template <int Taps>
constexpr int least_outputs(int point) {
  return point <= Taps - 2 || point == group_points(Taps) - 1 ? 0 : point - Taps + 2;
}

struct Matrix {
  float at[kMostPoints][kMostPoints] = {};
};

// The input's transform. A point's row has the coefficients of the product of x - q over the other
// finite points q of F(m, r). The weight is transformed for all points of the axis: what it divides
// by on account of the others is made good here.
template <int Taps, int Outputs>
constexpr Matrix input_matrix() {
  constexpr int count = finite<Taps>(Outputs);
  Matrix made;
  for (int i = 0; i <= count; ++i) {
    double row[kMostPoints + 1] = {1};
    int degree = 0;
    for (int q = 0; q < count; ++q) {
      if (q != i) {
        ++degree;
        for (int k = degree; k > 0; --k) {
          row[k] = row[k - 1] - place<Taps>(q) * row[k];
        }
        row[0] *= -place<Taps>(q);
      }
    }
    for (int q = count; i < count && q < group_points(Taps) - 1; ++q) {
      for (int k = 0; k <= degree; ++k) {
        row[k] *= place<Taps>(i) - place<Taps>(q);
      }
    }
    for (int k = 0; k <= degree; ++k) {
      made.at[i][k] = static_cast<float>(row[k]);
    }
  }
  return made;
}

// The output's transform, of the finite points: their powers.
template <int Taps, int Outputs>
constexpr Matrix output_matrix() {
  Matrix made;
  for (int i = 0; i < finite<Taps>(Outputs); ++i) {
    double power = 1;
    for (int k = 0; k < Outputs; ++k) {
      made.at[k][i] = static_cast<float>(power);
      power *= place<Taps>(i);
    }
  }
  return made;
}

}  // namespace
}  // namespace captum_krypton
