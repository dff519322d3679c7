// What convolve_patches, pool_patches and join_patches ask of their kernels: plain numbers and
// pointers, the same for every instruction set.
#pragma once

#include <cstdint>
#include <utility>

#include "../activation.h"
#include "winograd_sizes.h"

namespace captum_krypton {

// How the numbers of volumes and patches lie in memory. Kernels compute in float: they widen what
// they read, and round what they write once, to nearest even. All other numbers are float.
enum class Storage { kFloat, kBfloat16, kHalf };
constexpr int kStorages = 3;

// All that is said of axes is of three: depth, height and width. Where a call has two window axes,
// the depth is 1, and where it has one, the height is 1 too.

// The volumes that windows read: a patch inside its box, the base around it, zeros outside of the
// volume. Channels are last: the channels of a cell lie side by side.
struct Source {
  const void* base;
  const void* patch;
  const void* zeros;            // as many as there are channels
  const int64_t* image;         // row of the base, by window
  const int64_t* patch_offset;  // first cell of the patch, (windows, 3)
  const int64_t* patch_extent;  // cells of the patch that hold values, from its first, (windows, 3)
  const int64_t* read_offset;   // volume's cell that the block's first is, (windows, 3)
  int64_t channels;
  int64_t depth;
  int64_t height;
  int64_t width;
  int64_t patch_depth;
  int64_t patch_height;
  int64_t patch_width;
};

// What a call computes: of every window's patch the first cells along all axes, and no others.
struct Output {
  void* data;  // (windows, depth, height, width, channels)
  int64_t windows;
  int64_t depth;
  int64_t height;
  int64_t width;
  int64_t channels;
  const int64_t* extent;  // cells that are computed, (windows, 3)
  const int64_t* before;  // how many of them the earlier windows have, (windows + 1)
  int64_t step[3];        // cells from one that is computed to the next, along the axes
  const int64_t* first;   // the first one that is computed, (windows, 3); null: 0 of all
};

// What is done to the sums of a convolution.
struct Ending {
  const float* bias;       // none: null
  const Source* residual;  // added to the output; none: null
  const float* slope;      // by channel, for PReLU; others: null
  float low;
  float high;
  Activation activation;
};

// The outputs that Winograd's algorithm computes at once: 1 to kMostOutputs along height and width.
struct Tile {
  int64_t window;
  int64_t plane;
  int64_t row;
  int64_t column;
  int height;
  int width;
};

// Where Winograd's algorithm is exact enough. It adds up all numbers of a tile before it takes
// apart what belongs to each output, so every output has an error in proportion to the largest of
// them, whether it reads that one or not. A tile's level is the mean over its cells of the sum of
// the squares of their channels, each times the channel's energy: the mean square that outputs of
// such cells have. A tile above its image's limit, or with a number that is not finite, is
// convolved directly.
struct Range {
  const float* energy;  // of the input channels: squares of their weights, mean over outputs
  const float* limit;   // of a tile's level, by image
  const float* weight;  // (output channels, taps, channels), for a direct convolution
};

struct Convolution {
  Source source;
  const float* weight;  // packed, see `Kernels`
  Ending ending;
  Output out;
  const Tile* tiles;   // of all windows; none: null
  const Range* range;  // of Winograd's algorithm; none: null
  int64_t groups;      // of channels
  int64_t kernel[3];
  int64_t stride[3];
  int64_t dilation[3];
};

// Max pooling, or average pooling with one divisor.
struct Pooling {
  Source source;  // its zeros are what padding holds: -inf for max pooling
  float scale;    // of the sum; not used by max pooling
  Output out;
  int64_t kernel[3];
  int64_t stride[3];
  int64_t dilation[3];
};

// Channels of several volumes side by side: those of the first source, then the second's.
struct Joining {
  const Source* sources;
  int64_t count;
  const float* scale;  // of the output's channels, with shift; none: null
  const float* shift;
  float low;
  float high;
  Output out;
};

// The kernels of one instruction set for one storage. Each computes the units [begin, end) of the
// output, with `scratch` floats of memory of its own.
struct StorageKernels {
  // Units are tiles; strides and dilations are 1. weight: (points, panels, groups, channels,
  // panel).
  void (*winograd)(const Convolution&, int64_t begin, int64_t end, float* scratch);
  // Units are output cells. weight: (groups, panels, taps, channels, panel).
  void (*direct)(const Convolution&, int64_t begin, int64_t end, float* scratch);
  // The same for `is_narrow` convolutions. weight: (output channels, taps, channels).
  void (*narrow)(const Convolution&, int64_t begin, int64_t end, float* scratch);
  // Units are output cells, every channel by itself. weight: (taps, channels).
  void (*depthwise)(const Convolution&, int64_t begin, int64_t end, float* scratch);
  // Units are output cells.
  void (*maximum)(const Pooling&, int64_t begin, int64_t end, float* scratch);
  void (*average)(const Pooling&, int64_t begin, int64_t end, float* scratch);
  // Units are output cells.
  void (*join)(const Joining&, int64_t begin, int64_t end, float* scratch);
};

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  // Output channels that a panel of packed weights holds.
  int64_t panel;

  // Channels that Winograd's algorithm needs at least, of input and output.
  int64_t lanes;

  StorageKernels of[kStorages];
};

// Whether a convolution has so few output channels that most lanes of a panel would be idle.
constexpr bool is_narrow(int64_t groups, int64_t out_channels, int64_t panel) {
  return groups == 1 && 8 * out_channels <= panel;
}

// Columns from the first to the last that so many units side by side read.
template <typename Call>
constexpr int64_t read_width(const Call& call, int64_t units) {
  const int64_t taps = call.kernel[2];
  return taps ? (units - 1) * call.stride[2] + (taps - 1) * call.dilation[2] + 1 : 0;
}

// Floats of scratch for `units` units of a direct convolution: pointers to the cells that they read
// and write, the sums of a panel, and where cells are widened, these and pointers to those of a
// row.
constexpr int64_t direct_scratch(const Convolution& conv, int64_t units, int64_t panel,
                                 bool widens) {
  const int64_t taps = conv.kernel[0] * conv.kernel[1] * conv.kernel[2];
  const int64_t widened =
      widens ? 2 * read_width(conv, units) + units * taps * conv.source.channels : 0;
  return 2 * units * (taps + 3) + units * panel + widened;
}

// Of depthwise convolution and pooling: pointers to the cells that units side by side read, and to
// what is added to them.
template <typename Call>
constexpr int64_t run_scratch(const Call& call, int64_t units) {
  return 2 * (call.kernel[0] * call.kernel[1] * read_width(call, units) + units);
}

// Of the lines that narrow convolutions with fewer input channels than lanes read: how long they
// are, of how many rows of every plane of taps they are held at once, and all of it.
constexpr int64_t lines_pitch(const Convolution& conv, int64_t units, int64_t lanes) {
  const int64_t count = units < conv.out.width ? units : conv.out.width;
  const int64_t beside = conv.kernel[2] ? (conv.kernel[2] - 1) * conv.dilation[2] : 0;
  return count + beside / conv.stride[2] + 2 * lanes;
}

constexpr int64_t lines_slots(const Convolution& conv) {
  return conv.kernel[1] ? (conv.kernel[1] - 1) * conv.dilation[1] + 1 : 0;
}

constexpr int64_t lines_scratch(const Convolution& conv, int64_t units, int64_t lanes) {
  const int64_t rows = conv.kernel[0] * lines_slots(conv);
  const int64_t lines = conv.stride[2] * conv.source.channels;
  return 2 * (2 * rows + conv.kernel[2] * conv.source.channels) +
         rows * lines * lines_pitch(conv, units, lanes);
}

// Of a narrow convolution: its sums with what is added to them, and what finishes them; and all.
constexpr int64_t narrow_sums_scratch(const Convolution& conv, int64_t units, int64_t lanes) {
  return (2 * units + 4 * lanes) * conv.out.channels;
}

constexpr int64_t narrow_scratch(const Convolution& conv, int64_t units, const Kernels& kernels,
                                 bool widens) {
  const int64_t lanes = kernels.lanes;
  return narrow_sums_scratch(conv, units, lanes) +
         (conv.source.channels < lanes ? 4 * units + lines_scratch(conv, units, lanes)
                                       : direct_scratch(conv, units, kernels.panel, widens));
}

const Kernels* portable_kernels();
// Null where the compiler cannot make them.
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

}  // namespace captum_krypton
