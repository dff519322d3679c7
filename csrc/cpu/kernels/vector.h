// What the kernels of convolve_patches, pool_patches and join_patches are made of, for vectors of
// KRYPTON_LANES floats: the cells that a window sees, what is done to a sum before it is stored,
// and the matrix product.
//
// Included by one file for each instruction set, inside a region that is compiled for it. No
// function here may have a twin elsewhere, or the linker could keep the wrong one: everything is in
// an unnamed namespace, and nothing of the standard library is called.
#pragma once

#include "../kernels.h"

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

// A row is `depth` channels from `offset` of each of `taps` cells, wherever they lie, and has a
// place of its own in the output. `first_row` and `channel` are those of the panel's first number,
// for `finish`; without it sums are stored as they are. Of the panel its first vectors count.
template <int Rows, int Vectors, bool Finished>
KRYPTON_INLINE void multiply_cells(const float* const* cells, int64_t taps, int64_t depth,
                                   int64_t offset, const float* weight, float* const* out,
                                   const Finish& finish, int64_t first_row, int64_t channel) {
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
  const int64_t first = Finished ? channel : 0;
  bool stored = false;
  int64_t terms = 0;  // in `sums`
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t k = 0; k < depth; k += kTerms) {
      if (terms >= kTerms) {
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row) {
          add_to(out[row] + first, sums[row], !stored);
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
        rows[row] = cells[row * taps + tap] + offset + k;
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
      float* const at = out[row] + first + v * kLanes;
      const Vector sum = stored ? load<Vector>(at) + sums[row][v] : sums[row][v];
      store(at, Finished ? finish.apply(sum, first_row + row, channel + v * kLanes) : sum);
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

}  // namespace
}  // namespace captum_krypton
