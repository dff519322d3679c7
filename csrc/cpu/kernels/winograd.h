// Winograd's algorithm, for vectors of KRYPTON_LANES floats; see vector.h.
#pragma once

#include "../kernels.h"
#include "direct_tile.h"
#include "vector.h"

namespace captum_krypton {
namespace {

// --- Winograd's algorithm (Lavin and Gray 2016), one axis at a time: F(m, r), see kernels.h. An
// axis of one tap has one point and one output; m = 0 stands for it.

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

// Calls `work.template run<m>()` for an axis with m outputs, at most Most.
template <int Most, typename Work>
KRYPTON_INLINE void for_outputs(int outputs, const Work& work) {
  if constexpr (Most == 0) {
    work.template run<0>();
  } else if (outputs == Most) {
    work.template run<Most>();
  } else {
    for_outputs<Most - 1>(outputs, work);
  }
}

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

struct PutOutput {
  const Finish& finish;
  float* out;
  int64_t row_stride, column_stride, channel;

  KRYPTON_INLINE void operator()(int i, int j, Vector number) const {
    store(out + i * row_stride + j * column_stride + channel,
          finish.apply(number, i * kMostOutputs + j, channel));
  }
};

template <int Taps>
class Winograd {
 public:
  Winograd(const Convolution& conv, int64_t begin, int64_t end, float* scratch)
      : conv_(conv),
        tiles_(conv.tiles + begin),
        count_(end - begin),
        channels_(conv.source.channels),
        depth_(winograd_depth(conv.kernel, channels_)),
        padded_(round_up(conv.out.channels, kPanel)),
        plane_(count_ * depth_ + 16),
        out_plane_(count_ * padded_ + 16),
        cells_(scratch),
        products_(cells_ + winograd_points(conv.kernel) * plane_),
        slots_(reinterpret_cast<int32_t*>(products_ + winograd_points(conv.kernel) * out_plane_)),
        beyond_(slots_ + kMostOutputs * kMostOutputs * count_) {}

  void run() {
    assign_slots();
    for (int64_t tile = 0; tile < count_; ++tile) {
      input(tile);
    }
    multiply();
    for (int64_t tile = 0; tile < count_; ++tile) {
      if (!beyond_[tile]) {
        output(tile);
      }
    }
    // Weights of so many output channels stay in the caches for all tiles.
    for (int64_t k = 0; any_beyond_ && k < conv_.out.channels; k += kPanel) {
      for (int64_t tile = 0; tile < count_; ++tile) {
        if (beyond_[tile]) {
          direct(tile, k, least(k + kPanel, conv_.out.channels));
        }
      }
    }
  }

 private:
  // Cells along an axis that a tile reads at most.
  static constexpr int kMostCells = group_points(Taps) + Taps * (kMostGroups - 1);

  int64_t groups(int axis) const { return axis_groups(conv_.kernel[axis], Taps); }
  int points_along(int axis) const { return axis_points(conv_.kernel[axis], Taps); }
  int outputs(const Tile& tile, int axis) const {
    return conv_.kernel[axis] == 1 ? 0 : (axis == 0 ? tile.height : tile.width);
  }

  // Tiles that have a point lie side by side in its plane: a tile's place depends on the point.
  void assign_slots() {
    for (int u = 0; u < kMostOutputs; ++u) {
      for (int v = 0; v < kMostOutputs; ++v) {
        int32_t* const slots = slots_ + (u * kMostOutputs + v) * count_;
        int32_t used = 0;
        for (int64_t tile = 0; tile < count_; ++tile) {
          slots[tile] = used;
          used += tiles_[tile].height > u && tiles_[tile].width > v;
        }
        used_[u][v] = used;
      }
    }
  }

  // Where the tile's numbers of each of its points are.
  template <typename Pointer>
  KRYPTON_INLINE void addresses(int64_t tile, Pointer planes, int64_t plane, int64_t depth,
                                Pointer* out) const {
    const int height = outputs(tiles_[tile], 0), width = outputs(tiles_[tile], 1);
    for (int i = 0; i < points<Taps>(height); ++i) {
      const int y = point<Taps>(height, i);
      for (int j = 0; j < points<Taps>(width); ++j) {
        const int x = point<Taps>(width, j);
        const int kind = least_outputs<Taps>(y) * kMostOutputs + least_outputs<Taps>(x);
        out[i * kMostPoints + j] =
            planes + (y * points_along(1) + x) * plane + slots_[kind * count_ + tile] * depth;
      }
    }
  }

  void input(int64_t number) {
    const Tile& tile = tiles_[number];
    const int height = outputs(tile, 0), width = outputs(tile, 1);
    const View view_of = view(conv_.source, tile.window);
    const float* cells[kMostCells * kMostCells];
    const int64_t rows = points<Taps>(height) + Taps * (groups(0) - 1);
    const int64_t columns = points<Taps>(width) + Taps * (groups(1) - 1);
    // The last group may have fewer taps; what the others would read does not count.
    const int64_t read_rows = tile.height + conv_.kernel[0] - 1;
    const int64_t read_columns = tile.width + conv_.kernel[1] - 1;
    for (int64_t i = 0; i < rows; ++i) {
      const Row row = view_of.row(tile.row + i);
      for (int64_t j = 0; j < columns; ++j) {
        const bool read = i < read_rows && j < read_columns;
        cells[i * kMostCells + j] = read ? row.at(tile.column + j) : row.zeros;
      }
    }
    float* to[kMostPoints * kMostPoints];
    addresses(number, cells_, plane_, depth_, to);
    int64_t at = 0;
    Vector level{};
    for (int64_t i = 0; i < groups(0); ++i) {
      for (int64_t j = 0; j < groups(1); ++j) {
        const float* const* const group = cells + Taps * (i * kMostCells + j);
        for (int64_t c = 0; c < channels_; c += kLanes) {
          const int64_t channel = least(c, channels_ - kLanes);  // the last ones twice
          const Vector squares = transform<Taps, Input<Taps>, kMostCells>(
              height, width, group, channel, PutPoint{to, at + channel});
          level += squares * load<Vector>(conv_.range->energy + channel);
        }
        at += channels_;
      }
    }
    const int64_t read = groups(0) * groups(1) * points<Taps>(height) * points<Taps>(width);
    const float limit = conv_.range->limit[conv_.source.image[tile.window]];
    const float sum = total(level);  // not finite where a number is not: then below nothing
    beyond_[number] = !(sum <= limit * read && sum < __builtin_inff());
    any_beyond_ = any_beyond_ || beyond_[number];
  }

  // Output channels of a tile, by definition.
  void direct(int64_t number, int64_t begin, int64_t end) {
    const Tile& tile = tiles_[number];
    const View view_of = view(conv_.source, tile.window);
    const float* cells[kMostCells * kMostCells];
    for (int64_t i = 0; i < tile.height + conv_.kernel[0] - 1; ++i) {
      const Row row = view_of.row(tile.row + i);
      for (int64_t j = 0; j < tile.width + conv_.kernel[1] - 1; ++j) {
        cells[i * kMostCells + j] = row.at(tile.column + j);
      }
    }
    const float* residual[kMostOutputs * kMostOutputs];
    const Finish finish = finish_of(tile, residual);
    for (int i = 0; i < tile.height; ++i) {
      const DirectRow row{conv_,
                          cells + i * kMostCells,
                          kMostCells,
                          begin,
                          end,
                          finish,
                          i * kMostOutputs,
                          first_output(tile) + i * conv_.out.width * conv_.out.channels};
      for_outputs<kMostOutputs>(tile.width, row);
    }
  }

  void multiply() {
    const float* weight = conv_.weight;
    const float* const end = weight + winograd_points(conv_.kernel) * padded_ * depth_;
    for (int y = 0; y < points_along(0); ++y) {
      for (int x = 0; x < points_along(1); ++x) {
        const int64_t number = y * points_along(1) + x;
        const int64_t rows = used_[least_outputs<Taps>(y)][least_outputs<Taps>(x)];
        for (int64_t k = 0; k < padded_; k += kPanel) {
          const float* const next = weight + depth_ * kPanel;
          for_rows<kRows>(0, rows,
                          MultiplyRows{cells_ + number * plane_, rows, depth_, weight,
                                       next < end ? next : nullptr,
                                       products_ + number * out_plane_ + k, padded_});
          weight = next;
        }
      }
    }
  }

  // What is done to the tile's outputs; `residual` is room for what is added to them.
  Finish finish_of(const Tile& tile, const float* (&residual)[kMostOutputs * kMostOutputs]) const {
    if (conv_.residual) {
      const View cells = view(*conv_.residual, tile.window);
      for (int i = 0; i < tile.height; ++i) {
        const Row row = cells.row(tile.row + i);
        for (int j = 0; j < tile.width; ++j) {
          residual[i * kMostOutputs + j] = row.at(tile.column + j);
        }
      }
    }
    return {conv_.bias, conv_.residual ? residual : nullptr, conv_.low, conv_.high,
            conv_.activation};
  }

  float* first_output(const Tile& tile) const {
    const Output& out = conv_.out;
    return out.data +
           ((tile.window * out.height + tile.row) * out.width + tile.column) * out.channels;
  }

  void output(int64_t number) {
    const Tile& tile = tiles_[number];
    const int height = outputs(tile, 0), width = outputs(tile, 1);
    const float* residual[kMostOutputs * kMostOutputs];
    const Finish finish = finish_of(tile, residual);
    const Output& out = conv_.out;
    const float* from[kMostPoints * kMostPoints];
    addresses<const float*>(number, products_, out_plane_, padded_, from);
    float* const to = first_output(tile);
    for (int64_t c = 0; c < out.channels; c += kLanes) {
      const int64_t channel = least(c, out.channels - kLanes);  // the last ones twice
      transform<Taps, Inverse<Taps>, kMostPoints>(
          height, width, from, channel,
          PutOutput{finish, to, out.width * out.channels, out.channels, channel});
    }
  }

  const Convolution& conv_;
  const Tile* tiles_;
  int64_t count_, channels_, depth_, padded_, plane_, out_plane_;
  float* cells_;
  float* products_;
  int32_t* slots_;
  int32_t* beyond_;  // whether a tile is out of range
  bool any_beyond_ = false;
  int32_t used_[kMostOutputs][kMostOutputs];
};

void winograd(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  if (group_taps(conv.kernel) == 4) {
    Winograd<4>(conv, begin, end, scratch).run();
  } else {
    Winograd<3>(conv, begin, end, scratch).run();
  }
}

}  // namespace
}  // namespace captum_krypton
