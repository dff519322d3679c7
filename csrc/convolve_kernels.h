// The kernels of convolve_patches and pool_patches, written for vectors of KRYPTON_LANES floats.
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

// The window's part of a source.
struct View {
  const float* base;
  const float* patch;
  const float* zeros;
  int64_t channels, height, width, patch_height, patch_width;
  int64_t y, x;              // of the block's first cell in the volume
  int64_t patch_y, patch_x;  // of the patch's

  KRYPTON_INLINE const float* at(int64_t row, int64_t column) const {
    const int64_t v = y + row;
    const int64_t u = x + column;
    if (static_cast<uint64_t>(v) >= static_cast<uint64_t>(height) ||
        static_cast<uint64_t>(u) >= static_cast<uint64_t>(width)) {
      return zeros;
    }
    const int64_t p = v - patch_y;
    const int64_t q = u - patch_x;
    if (static_cast<uint64_t>(p) < static_cast<uint64_t>(patch_height) &&
        static_cast<uint64_t>(q) < static_cast<uint64_t>(patch_width)) {
      return patch + (p * patch_width + q) * channels;
    }
    return base + (v * width + u) * channels;
  }
};

KRYPTON_INLINE View view(const Source& source, int64_t window) {
  return {source.base + source.image[window] * source.height * source.width * source.channels,
          source.patch + window * source.patch_height * source.patch_width * source.channels,
          source.zeros,
          source.channels,
          source.height,
          source.width,
          source.patch_height,
          source.patch_width,
          source.read_offset[2 * window],
          source.read_offset[2 * window + 1],
          source.patch_offset[2 * window],
          source.patch_offset[2 * window + 1]};
}

// What is done to a sum before it is stored.
struct Finish {
  const float* bias;             // none: null
  const float* const* residual;  // by row; none: null
  float low, high;

  template <typename V>
  KRYPTON_INLINE V apply(V value, int64_t row, int64_t channel) const {
    if (bias) {
      value += load<V>(bias + channel);
    }
    if (residual) {
      value += load<V>(residual[row] + channel);
    }
    clamp(value, low, high);
    return value;
  }
};

// --- Matrix product: out (rows, panel) = cells (rows, depth) x panel of weights (depth, panel).

// Adds the products of `depth` numbers of every row to its sums.
template <int Rows>
KRYPTON_INLINE void accumulate(const float* const (&rows)[Rows], int64_t depth, const float* weight,
                               Vector (&sums)[Rows][2]) {
  for (int64_t k = 0; k < depth; ++k) {
    const Vector first = load<Vector>(weight);
    const Vector second = load<Vector>(weight + kLanes);
    weight += kPanel;
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
      sums[row][0] += rows[row][k] * first;
      sums[row][1] += rows[row][k] * second;
    }
  }
}

// Rows lie one after another.
template <int Rows>
KRYPTON_INLINE void multiply_rows(const float* cells, int64_t depth, const float* weight,
                                  float* out, int64_t out_stride) {
  Vector sums[Rows][2] = {};
  const float* rows[Rows];
#pragma GCC unroll 16
  for (int row = 0; row < Rows; ++row) {
    rows[row] = cells + row * depth;
  }
  accumulate<Rows>(rows, depth, weight, sums);
#pragma GCC unroll 16
  for (int row = 0; row < Rows; ++row) {
    store(out + row * out_stride, sums[row][0]);
    store(out + row * out_stride + kLanes, sums[row][1]);
  }
}

// A row is `taps` cells of `depth` channels each, wherever they lie. `first_row` and `channel` are
// those of the panel's first number, for `finish`; without it sums are stored as they are.
template <int Rows, bool Finished>
KRYPTON_INLINE void multiply_cells(const float* const* cells, int64_t taps, int64_t depth,
                                   const float* weight, float* out, int64_t out_stride,
                                   const Finish& finish, int64_t first_row, int64_t channel) {
  Vector sums[Rows][2] = {};
  for (int64_t tap = 0; tap < taps; ++tap) {
    const float* rows[Rows];
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
      rows[row] = cells[row * taps + tap];
    }
    accumulate<Rows>(rows, depth, weight, sums);
    weight += depth * kPanel;
  }
#pragma GCC unroll 16
  for (int row = 0; row < Rows; ++row) {
    Vector first = sums[row][0], second = sums[row][1];
    if (Finished) {
      first = finish.apply(first, first_row + row, channel);
      second = finish.apply(second, first_row + row, channel + kLanes);
    }
    store(out + row * out_stride, first);
    store(out + row * out_stride + kLanes, second);
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
  int64_t depth;
  const float* weight;
  float* out;
  int64_t out_stride;

  template <int Rows>
  KRYPTON_INLINE void run(int64_t row) const {
    multiply_rows<Rows>(cells + row * depth, depth, weight, out + row * out_stride, out_stride);
  }
};

template <bool Finished>
struct MultiplyCells {
  const float* const* cells;
  int64_t taps, depth;
  const float* weight;
  float* out;
  int64_t out_stride;
  const Finish& finish;
  int64_t channel;

  template <int Rows>
  KRYPTON_INLINE void run(int64_t row) const {
    multiply_cells<Rows, Finished>(cells + row * taps, taps, depth, weight, out + row * out_stride,
                                   out_stride, finish, row, channel);
  }
};

// --- Winograd's transforms of one axis (Lavin and Gray 2016). F(2, 3) interpolates at 0, 1, -1 and
// infinity; F(4, 3) at 0, +-a, +-b and infinity.

template <int Tile>
struct Transform;

template <>
struct Transform<2> {
  template <typename V>
  static KRYPTON_INLINE void input(const V* d, V* r) {
    r[0] = d[0] - d[2];
    r[1] = d[1] + d[2];
    r[2] = d[2] - d[1];
    r[3] = d[1] - d[3];
  }
  template <typename V>
  static KRYPTON_INLINE void output(const V* m, V* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

template <>
struct Transform<4> {
  static constexpr float a = kPointA, b = kPointB;
  static constexpr float a2 = a * a, b2 = b * b, a3 = a2 * a, b3 = b2 * b;
  static constexpr float product = a2 * b2, sum = a2 + b2;
  template <typename V>
  static KRYPTON_INLINE void input(const V* d, V* r) {
    r[0] = product * d[0] + (d[4] - sum * d[2]);
    const V even_a = d[4] - b2 * d[2], odd_a = d[3] - b2 * d[1];
    r[1] = even_a + a * odd_a;
    r[2] = even_a - a * odd_a;
    const V even_b = d[4] - a2 * d[2], odd_b = d[3] - a2 * d[1];
    r[3] = even_b + b * odd_b;
    r[4] = even_b - b * odd_b;
    r[5] = product * d[1] + (d[5] - sum * d[3]);
  }
  template <typename V>
  static KRYPTON_INLINE void output(const V* m, V* y) {
    const V sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const V sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = m[0] + (sum_a + sum_b);
    y[1] = a * difference_a + b * difference_b;
    y[2] = a2 * sum_a + b2 * sum_b;
    y[3] = a3 * difference_a + (b3 * difference_b + m[5]);
  }
};

template <int Tile>
struct Winograd {
  static constexpr int kSide = Tile + 2;
  static constexpr int kPoints = kSide * kSide;

  struct Place {
    int64_t window, row, column;
  };

  static KRYPTON_INLINE Place place(const Convolution& conv, int64_t tile) {
    const int64_t across = (conv.width + Tile - 1) / Tile;
    const int64_t each = (conv.height + Tile - 1) / Tile * across;
    const int64_t within = tile % each;
    return {tile / each, within / across * Tile, within % across * Tile};
  }

  template <typename V>
  static KRYPTON_INLINE void input_channels(const float* const* cells, int64_t c, float* out,
                                            int64_t plane) {
    V columns[kSide][kSide];
#pragma GCC unroll 8
    for (int j = 0; j < kSide; ++j) {
      V d[kSide], r[kSide];
#pragma GCC unroll 8
      for (int i = 0; i < kSide; ++i) {
        d[i] = load<V>(cells[i * kSide + j] + c);
      }
      Transform<Tile>::input(d, r);
#pragma GCC unroll 8
      for (int i = 0; i < kSide; ++i) {
        columns[i][j] = r[i];
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kSide; ++i) {
      V r[kSide];
      Transform<Tile>::input(columns[i], r);
#pragma GCC unroll 8
      for (int j = 0; j < kSide; ++j) {
        store(out + (i * kSide + j) * plane + c, r[j]);
      }
    }
  }

  static KRYPTON_INLINE void input(const Convolution& conv, int64_t begin, int64_t end, float* out,
                                   int64_t plane) {
    const int64_t channels = conv.source.channels;
    for (int64_t tile = begin; tile < end; ++tile) {
      const Place at = place(conv, tile);
      const View cells_of = view(conv.source, at.window);
      const float* cells[kPoints];
      for (int i = 0; i < kSide; ++i) {
        for (int j = 0; j < kSide; ++j) {
          cells[i * kSide + j] = cells_of.at(at.row + i, at.column + j);
        }
      }
      float* const to = out + (tile - begin) * channels;
      int64_t c = 0;
      for (; c + kLanes <= channels; c += kLanes) {
        input_channels<Vector>(cells, c, to, plane);
      }
      for (; c < channels; ++c) {
        input_channels<float>(cells, c, to, plane);
      }
    }
  }

  template <typename V>
  static KRYPTON_INLINE void output_channels(const Convolution& conv, const float* in,
                                             int64_t plane, int64_t c, int64_t rows,
                                             int64_t columns, const float* const* residual,
                                             float* out) {
    V half[Tile][kSide];
#pragma GCC unroll 8
    for (int j = 0; j < kSide; ++j) {
      V m[kSide], y[Tile];
#pragma GCC unroll 8
      for (int i = 0; i < kSide; ++i) {
        m[i] = load<V>(in + (i * kSide + j) * plane + c);
      }
      Transform<Tile>::output(m, y);
#pragma GCC unroll 8
      for (int i = 0; i < Tile; ++i) {
        half[i][j] = y[i];
      }
    }
    const Finish finish{conv.bias, residual, conv.low, conv.high};
#pragma GCC unroll 8
    for (int i = 0; i < Tile; ++i) {
      if (i >= rows) {
        break;
      }
      V y[Tile];
      Transform<Tile>::output(half[i], y);
#pragma GCC unroll 8
      for (int j = 0; j < Tile; ++j) {
        if (j >= columns) {
          break;
        }
        store(out + (i * conv.width + j) * conv.out_channels + c,
              finish.apply(y[j], i * Tile + j, c));
      }
    }
  }

  static KRYPTON_INLINE void output(const Convolution& conv, int64_t begin, int64_t end,
                                    const float* in, int64_t plane, int64_t padded) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const Place at = place(conv, tile);
      const int64_t rows = least(Tile, conv.height - at.row);
      const int64_t columns = least(Tile, conv.width - at.column);
      const float* residual[Tile * Tile];
      if (conv.residual) {
        const View cells = view(*conv.residual, at.window);
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < columns; ++j) {
            residual[i * Tile + j] = cells.at(at.row + i, at.column + j);
          }
        }
      }
      const float* const* added = conv.residual ? residual : nullptr;
      const float* const from = in + (tile - begin) * padded;
      float* const out = conv.out + ((at.window * conv.height + at.row) * conv.width + at.column) *
                                        conv.out_channels;
      int64_t c = 0;
      for (; c + kLanes <= conv.out_channels; c += kLanes) {
        output_channels<Vector>(conv, from, plane, c, rows, columns, added, out);
      }
      for (; c < conv.out_channels; ++c) {
        output_channels<float>(conv, from, plane, c, rows, columns, added, out);
      }
    }
  }

  static void run(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
    const int64_t tiles = end - begin;
    const int64_t channels = conv.source.channels;
    const int64_t padded = round_up(conv.out_channels, kPanel);
    const int64_t plane = tiles * channels + 16;
    const int64_t out_plane = tiles * padded + 16;
    float* const products = scratch + kPoints * plane;
    input(conv, begin, end, scratch, plane);
    const float* weight = conv.weight;
    for (int point = 0; point < kPoints; ++point) {
      for (int64_t k = 0; k < padded; k += kPanel) {
        float* const out = products + point * out_plane + k;
        for_rows<kRows>(0, tiles,
                        MultiplyRows{scratch + point * plane, channels, weight, out, padded});
        weight += channels * kPanel;
      }
    }
    output(conv, begin, end, products, out_plane, padded);
  }
};

// --- Direct convolution: every output cell is a row of the product, its taps one after another.

struct Cell {
  int64_t window, row, column;
};

template <typename Call>
KRYPTON_INLINE Cell cell(const Call& call, int64_t number) {
  const int64_t each = call.height * call.width;
  const int64_t within = number % each;
  return {number / each, within / call.width, within % call.width};
}

template <typename Call>
KRYPTON_INLINE void taps(const Call& call, const View& cells, const Cell& at, const float** out) {
  for (int64_t i = 0; i < call.kernel[0]; ++i) {
    for (int64_t j = 0; j < call.kernel[1]; ++j) {
      *out++ = cells.at(at.row * call.stride[0] + i * call.dilation[0],
                        at.column * call.stride[1] + j * call.dilation[1]);
    }
  }
}

KRYPTON_INLINE const float* residual_cell(const Convolution& conv, const Cell& at) {
  return conv.residual ? view(*conv.residual, at.window).at(at.row, at.column) : nullptr;
}

void direct(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  const int64_t count = conv.kernel[0] * conv.kernel[1];
  const int64_t units = end - begin;
  const int64_t depth = conv.source.channels;
  const int64_t out_channels = conv.out_channels;
  const float** const cells = reinterpret_cast<const float**>(scratch);
  const float** const residual = cells + units * count;
  float* const last = scratch + 2 * units * (count + 1);
  for (int64_t unit = 0; unit < units; ++unit) {
    const Cell at = cell(conv, begin + unit);
    taps(conv, view(conv.source, at.window), at, cells + unit * count);
    residual[unit] = residual_cell(conv, at);
  }
  const Finish finish{conv.bias, conv.residual ? residual : nullptr, conv.low, conv.high};
  float* const out = conv.out + begin * out_channels;
  const float* weight = conv.weight;
  int64_t k = 0;
  for (; k + kPanel <= out_channels; k += kPanel) {
    for_rows<kRows>(
        0, units,
        MultiplyCells<true>{cells, count, depth, weight, out + k, out_channels, finish, k});
    weight += count * depth * kPanel;
  }
  if (k == out_channels) {
    return;
  }
  // A panel that is not full: its sums go through memory of our own.
  for_rows<kRows>(0, units,
                  MultiplyCells<false>{cells, count, depth, weight, last, kPanel, finish, k});
  for (int64_t unit = 0; unit < units; ++unit) {
    for (int64_t c = k; c < out_channels; ++c) {
      out[unit * out_channels + c] = finish.apply(last[unit * kPanel + c - k], unit, c);
    }
  }
}

// --- Depthwise convolution: channels lie in the lanes.

template <typename V>
KRYPTON_INLINE void depthwise_channels(const Convolution& conv, const float* const* cells,
                                       int64_t count, int64_t c, const Finish& finish, float* out) {
  V sum{};
  const float* weight = conv.weight + c;
  for (int64_t tap = 0; tap < count; ++tap) {
    sum += load<V>(cells[tap] + c) * load<V>(weight);
    weight += conv.out_channels;
  }
  store(out + c, finish.apply(sum, 0, c));
}

void depthwise(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  const int64_t count = conv.kernel[0] * conv.kernel[1];
  const float** const cells = reinterpret_cast<const float**>(scratch);
  for (int64_t number = begin; number < end; ++number) {
    const Cell at = cell(conv, number);
    taps(conv, view(conv.source, at.window), at, cells);
    const float* const residual = residual_cell(conv, at);
    const Finish finish{conv.bias, residual ? &residual : nullptr, conv.low, conv.high};
    float* const out = conv.out + number * conv.out_channels;
    int64_t c = 0;
    for (; c + kLanes <= conv.out_channels; c += kLanes) {
      depthwise_channels<Vector>(conv, cells, count, c, finish, out);
    }
    for (; c < conv.out_channels; ++c) {
      depthwise_channels<float>(conv, cells, count, c, finish, out);
    }
  }
}

// --- Pooling.

KRYPTON_INLINE void take_larger(float& most, float value) {
  most = value > most || value != value ? value : most;
}

// A number that is not one stays, as in ATen.
KRYPTON_INLINE void take_larger(Vector& most, Vector value) {
  most = value > most ? value : most;
  most = value == value ? most : value;
}

template <typename V, bool Maximum>
KRYPTON_INLINE void pool_channels(const float* const* cells, int64_t count, float scale, int64_t c,
                                  float* out) {
  V value = load<V>(cells[0] + c);
  for (int64_t tap = 1; tap < count; ++tap) {
    if (Maximum) {
      take_larger(value, load<V>(cells[tap] + c));
    } else {
      value += load<V>(cells[tap] + c);
    }
  }
  store(out + c, Maximum ? value : value * scale);
}

template <bool Maximum>
KRYPTON_INLINE void pool(const Pooling& call, int64_t begin, int64_t end, float* scratch) {
  const int64_t count = call.kernel[0] * call.kernel[1];
  const int64_t channels = call.source.channels;
  const float** const cells = reinterpret_cast<const float**>(scratch);
  for (int64_t number = begin; number < end; ++number) {
    const Cell at = cell(call, number);
    taps(call, view(call.source, at.window), at, cells);
    float* const out = call.out + number * channels;
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      pool_channels<Vector, Maximum>(cells, count, call.scale, c, out);
    }
    for (; c < channels; ++c) {
      pool_channels<float, Maximum>(cells, count, call.scale, c, out);
    }
  }
}

void maximum(const Pooling& call, int64_t begin, int64_t end, float* scratch) {
  pool<true>(call, begin, end, scratch);
}

void average(const Pooling& call, int64_t begin, int64_t end, float* scratch) {
  pool<false>(call, begin, end, scratch);
}

void winograd2(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  Winograd<2>::run(conv, begin, end, scratch);
}

void winograd4(const Convolution& conv, int64_t begin, int64_t end, float* scratch) {
  Winograd<4>::run(conv, begin, end, scratch);
}

constexpr Kernels kKernels{KRYPTON_NAME, kPanel,     &winograd2, &winograd4,
                           &direct,      &depthwise, &maximum,   &average};

}  // namespace
}  // namespace captum_krypton
