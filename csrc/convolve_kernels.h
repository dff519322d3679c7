// The kernels of convolve_patches, pool_patches and join_patches, written for vectors of
// KRYPTON_LANES floats.
//
// Included by one file for each instruction set, inside a region that is compiled for it. No
// function here may have a twin elsewhere, or the linker could keep the wrong one: everything is in
// an unnamed namespace, and nothing of the standard library is called.

namespace captum_krypton {
namespace {

#define KRYPTON_INLINE inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(KRYPTON_LANES * sizeof(float))));

constexpr int64_t kLanes = KRYPTON_LANES;
constexpr int64_t kPanel = 2 * kLanes;
constexpr int kRows = KRYPTON_ROWS;  // that fill the registers, two vectors each
constexpr int kNarrowRows = 8;       // the same, one vector each: as many as have a pointer

template <typename V>
KRYPTON_INLINE V load(const float* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof(V));  // from need not be aligned
  return value;
}

template <typename V>
KRYPTON_INLINE void store(float* to, V value) {
  __builtin_memcpy(to, &value, sizeof(V));
}

KRYPTON_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// NaN stays NaN, as in ATen.
KRYPTON_INLINE void clamp(float& value, float low, float high) {
  value = value < low ? low : value;
  value = value > high ? high : value;
}

KRYPTON_INLINE void clamp(Vector& value, float low, float high) {
  const Vector lows = low - Vector{};
  const Vector highs = high - Vector{};
  value = value < lows ? lows : value;
  value = value > highs ? highs : value;
}

// One row of the volume as a window sees it. Columns are counted from the block's first.
struct Row {
  const float* base;
  const float* patch;
  const float* zeros;
  int64_t channels;
  int64_t x, width;              // of the block's first column in the volume, and the volume's
  int64_t patch_x, patch_width;  // of the patch in the volume; nowhere outside of it

  KRYPTON_INLINE const float* at(int64_t column) const {
    const int64_t u = x + column;
    const int64_t q = u - patch_x;
    if (static_cast<uint64_t>(q) < static_cast<uint64_t>(patch_width)) {
      return patch + q * channels;
    }
    return static_cast<uint64_t>(u) < static_cast<uint64_t>(width) ? base + u * channels : zeros;
  }
};

// The window's part of a source.
struct View {
  Row first;       // all rows are like it
  int64_t height;  // of the volume
  int64_t y;       // of the block's first row in the volume
  int64_t patch_y, patch_height;
  int64_t pitch;  // numbers from one row of the patch to the next

  KRYPTON_INLINE Row row(int64_t number) const {
    Row found = first;
    const int64_t v = y + number;
    const int64_t p = v - patch_y;
    if (static_cast<uint64_t>(v) >= static_cast<uint64_t>(height)) {
      found.width = found.patch_width = 0;
    } else if (static_cast<uint64_t>(p) >= static_cast<uint64_t>(patch_height)) {
      found.patch_width = 0;
    } else {
      found.patch += p * pitch;
    }
    found.base += found.width ? v * found.width * found.channels : 0;
    return found;
  }
};

KRYPTON_INLINE View view(const Source& source, int64_t window) {
  const int64_t offset = source.patch_offset[2 * window + 1];
  const int64_t skipped = offset < 0 ? -offset : 0;
  int64_t columns = least(source.patch_extent[2 * window + 1], source.width - offset) - skipped;
  columns = columns < 0 ? 0 : columns;
  return {{source.base + source.image[window] * source.height * source.width * source.channels,
           source.patch +
               (window * source.patch_height * source.patch_width + skipped) * source.channels,
           source.zeros, source.channels, source.read_offset[2 * window + 1], source.width,
           offset + skipped, columns},
          source.height,
          source.read_offset[2 * window],
          source.patch_offset[2 * window],
          source.patch_extent[2 * window],
          source.patch_width * source.channels};
}

// --- Activations, of vectors or single numbers.

// The integers of a vector's lanes, or of a number.
template <typename V>
struct Bits;

template <>
struct Bits<float> {
  typedef uint32_t Type;
};

template <>
struct Bits<Vector> {
  typedef uint32_t Type __attribute__((vector_size(KRYPTON_LANES * sizeof(uint32_t))));
};

// e^x, infinite from 88 on, by Cody and Waite's reduction, x = n ln 2 + r, and the first terms of
// the series of e^r.
template <typename V>
KRYPTON_INLINE V exponential(V x) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const V large = x;
  clamp(x, -87.0F, 88.0F);
  const V shifted = x * 1.44269504F + kMagic;
  const V n = shifted - kMagic;
  const V r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
  V sum = 1.0F / 5040 * r + 1.0F / 720;
  sum = sum * r + 1.0F / 120;
  sum = sum * r + 1.0F / 24;
  sum = sum * r + 1.0F / 6;
  sum = sum * r + 0.5F;
  sum = sum * r + 1.0F;
  sum = sum * r + 1.0F;
  typename Bits<V>::Type power;
  __builtin_memcpy(&power, &shifted, sizeof(V));
  power = (power - 0x4B400000U + 127U) << 23;
  V scale;
  __builtin_memcpy(&scale, &power, sizeof(V));
  const V found = sum * scale;
  return large > 88.0F ? V{} + __builtin_inff() : found;
}

// The error function: x P(x^2) / Q(x^2), fitted on [-4, 4], where it ends within float32's
// rounding of 1. The largest error is 4e-7.
template <typename V>
KRYPTON_INLINE V error_function(V x) {
  clamp(x, -4.0F, 4.0F);
  const V u = x * x;
  V p = 1.986792075e-6F * u + 2.845639801e-4F;
  p = p * u + 3.883270651e-3F;
  p = p * u + 5.310152050e-2F;
  p = p * u + 1.935433940e-1F;
  p = p * u + 1.128379139F;
  V q = 3.742017414e-5F * u + 1.185552804e-3F;
  q = q * u + 1.520710521e-2F;
  q = q * u + 1.153493059e-1F;
  q = q * u + 5.048559232e-1F;
  q = q * u + 1.0F;
  V found = x * p / q;
  clamp(found, -1.0F, 1.0F);
  return found;
}

template <typename V>
KRYPTON_INLINE V activate(V x, Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      return 0.5F * x * (1.0F + error_function(x * 0.707106781F));
    case Activation::kSilu:
      return x / (1.0F + exponential(-x));
    case Activation::kHardswish: {
      V gate = x + 3.0F;
      clamp(gate, 0.0F, 6.0F);
      return x * gate / 6.0F;
    }
    default:
      return x;
  }
}

// What is done to a sum before it is stored.
struct Finish {
  const float* bias;             // none: null
  const float* const* residual;  // by row; none: null
  float low, high;
  Activation activation;

  template <typename V>
  KRYPTON_INLINE V apply(V value, int64_t row, int64_t channel) const {
    if (bias) {
      value += load<V>(bias + channel);
    }
    if (residual) {
      value += load<V>(residual[row] + channel);
    }
    if (activation != Activation::kNone) {
      value = activate(value, activation);
    }
    clamp(value, low, high);
    return value;
  }
};

// --- Matrix product: out (rows, panel) = cells (rows, depth) x panel of weights (depth, panel).

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

// Rows lie one after another. A function of its own: its loop needs all registers that there are.
template <int Rows>
__attribute__((noinline)) void multiply_rows(const float* cells, int64_t depth, const float* weight,
                                             float* out, int64_t out_stride) {
  Vector sums[Rows][2] = {};
  const float* rows[Rows];
#pragma GCC unroll 16
  for (int row = 0; row < Rows; ++row) {
    rows[row] = cells + row * depth;
  }
  accumulate<Rows, 2>(rows, depth, weight, sums);
#pragma GCC unroll 16
  for (int row = 0; row < Rows; ++row) {
    store(out + row * out_stride, sums[row][0]);
    store(out + row * out_stride + kLanes, sums[row][1]);
  }
}

// A row is `depth` channels from `offset` of each of `taps` cells, wherever they lie, and has a
// place of its own in the output. `first_row` and `channel` are those of the panel's first number,
// for `finish`; without it sums are stored as they are. Of the panel its first vectors count.
template <int Rows, int Vectors, bool Finished>
KRYPTON_INLINE void multiply_cells(const float* const* cells, int64_t taps, int64_t depth,
                                   int64_t offset, const float* weight, float* const* out,
                                   const Finish& finish, int64_t first_row, int64_t channel) {
  Vector sums[Rows][Vectors] = {};
  if (Finished) {  // what `finish` touches lies far apart; it comes while the sums are made
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
      __builtin_prefetch(out[row] + channel, 1);
      if (finish.residual) {
        __builtin_prefetch(finish.residual[first_row + row] + channel);
      }
    }
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    const float* rows[Rows];
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
      rows[row] = cells[row * taps + tap] + offset;
    }
    accumulate<Rows, Vectors>(rows, depth, weight, sums);
    weight += depth * kPanel;
  }
#pragma GCC unroll 16
  for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      const int64_t at = channel + v * kLanes;
      store(out[row] + (Finished ? at : v * kLanes),
            Finished ? finish.apply(sums[row][v], first_row + row, at) : sums[row][v]);
    }
  }
}

constexpr int power_of_two_below(int rows) {
  int power = 1;
  while (2 * power < rows) {
    power *= 2;
  }
  return power;
}

// Calls `work.template run<n>(row)` for all rows from `row` to `rows`, n of them at a time: as many
// as fill the registers, then powers of two.
template <int Rows, typename Work>
KRYPTON_INLINE void for_rows(int64_t row, int64_t rows, const Work& work) {
  for (; row + Rows <= rows; row += Rows) {
    work.template run<Rows>(row);
  }
  if constexpr (Rows > 1) {
    for_rows<power_of_two_below(Rows)>(row, rows, work);
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

template <int Vectors, bool Finished>
struct MultiplyCells {
  const float* const* cells;
  int64_t taps, depth, offset;
  const float* weight;
  float* const* out;
  const Finish& finish;
  int64_t channel;

  template <int Rows>
  KRYPTON_INLINE void run(int64_t row) const {
    multiply_cells<Rows, Vectors, Finished>(cells + row * taps, taps, depth, offset, weight,
                                            out + row, finish, row, channel);
  }
};

// --- Winograd's algorithm (Lavin and Gray 2016), one axis at a time: F(m, r), see convolve.h. An
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

// The two directions of a transform.
template <int Taps>
struct Input {
  static constexpr int made(int outputs) { return points<Taps>(outputs); }
  template <int Outputs>
  static KRYPTON_INLINE void apply(const Vector* from, Vector* to) {
    Transform<Taps, Outputs>::input(from, to);
  }
};

template <int Taps>
struct Inverse {
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

  template <int Outputs>
  KRYPTON_INLINE void run() const {
    for (int j = 0; j < columns; ++j) {
      Vector read[kMostPoints], made[kMostPoints];
      for (int i = 0; i < points<Taps>(Outputs); ++i) {
        read[i] = load<Vector>(from[i * Pitch + j] + channel);
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

// Both axes of one vector of channels: rows x columns numbers from `from`.
template <int Taps, typename Direction, int Pitch, typename Put>
KRYPTON_INLINE void transform(int height, int width, const float* const* from, int64_t channel,
                              const Put& put) {
  constexpr int most = group_outputs(Taps);
  Vector half[kMostPoints][kMostPoints];
  for_outputs<most>(
      height, TransformRows<Taps, Direction, Pitch>{from, points<Taps>(width), channel, half});
  for_outputs<most>(width, TransformColumns<Direction, Put>{half, Direction::made(height), put});
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
        slots_(reinterpret_cast<int32_t*>(products_ + winograd_points(conv.kernel) * out_plane_)) {}

  void run() {
    assign_slots();
    for (int64_t tile = 0; tile < count_; ++tile) {
      input(tile);
    }
    multiply();
    for (int64_t tile = 0; tile < count_; ++tile) {
      output(tile);
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
    for (int64_t i = 0; i < groups(0); ++i) {
      for (int64_t j = 0; j < groups(1); ++j) {
        const float* const* const group = cells + Taps * (i * kMostCells + j);
        for (int64_t c = 0; c < channels_; c += kLanes) {
          const int64_t channel = least(c, channels_ - kLanes);  // the last ones twice
          transform<Taps, Input<Taps>, kMostCells>(height, width, group, channel,
                                                   PutPoint{to, at + channel});
        }
        at += channels_;
      }
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

  void output(int64_t number) {
    const Tile& tile = tiles_[number];
    const int height = outputs(tile, 0), width = outputs(tile, 1);
    const float* residual[kMostOutputs * kMostOutputs];
    if (conv_.residual) {
      const View cells = view(*conv_.residual, tile.window);
      for (int i = 0; i < tile.height; ++i) {
        const Row row = cells.row(tile.row + i);
        for (int j = 0; j < tile.width; ++j) {
          residual[i * kMostOutputs + j] = row.at(tile.column + j);
        }
      }
    }
    const Output& out = conv_.out;
    const Finish finish{conv_.bias, conv_.residual ? residual : nullptr, conv_.low, conv_.high,
                        conv_.activation};
    const float* from[kMostPoints * kMostPoints];
    addresses<const float*>(number, products_, out_plane_, padded_, from);
    float* const to =
        out.data + ((tile.window * out.height + tile.row) * out.width + tile.column) * out.channels;
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
  int32_t used_[kMostOutputs][kMostOutputs];
};

void winograd(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  if (group_taps(conv.kernel) == 4) {
    Winograd<4>(conv, begin, end, scratch).run();
  } else {
    Winograd<3>(conv, begin, end, scratch).run();
  }
}

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
