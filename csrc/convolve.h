// What convolve_patches and pool_patches ask of their kernels: plain numbers and pointers, the same
// for every instruction set.
#pragma once

#include <cstdint>

namespace captum_krypton {

// Where F(4, 3) interpolates, besides 0 and infinity: at +-a and +-b. Points of about one size keep
// rounding errors small; the usual 1 and 2 do not.
constexpr float kPointA = 0.625F;
constexpr float kPointB = 1.5F;

// The volumes that windows read: a patch inside its box, the base around it, zeros outside of the
// volume. Channels are last: the channels of a cell lie side by side.
struct Source {
  const float* base;
  const float* patch;
  const float* zeros;           // as many as there are channels
  const int64_t* image;         // row of the base, by window
  const int64_t* patch_offset;  // first cell of the patch, (windows, 2)
  const int64_t* read_offset;   // volume's cell that the block's first is, (windows, 2)
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t patch_height;
  int64_t patch_width;
};

struct Convolution {
  Source source;
  const Source* residual;  // added to the output; none: null
  const float* weight;     // packed, see `Kernels`
  const float* bias;       // none: null
  float low;
  float high;
  float* out;  // (windows, height, width, out_channels)
  int64_t windows;
  int64_t height;
  int64_t width;
  int64_t out_channels;
  int64_t kernel[2];
  int64_t stride[2];
  int64_t dilation[2];
};

// Max pooling, or average pooling with one divisor.
struct Pooling {
  Source source;  // its zeros are what padding holds: -inf for max pooling
  float scale;    // of the sum; not used by max pooling
  float* out;     // (windows, height, width, channels)
  int64_t windows;
  int64_t height;
  int64_t width;
  int64_t kernel[2];
  int64_t stride[2];
  int64_t dilation[2];
};

// The kernels of one instruction set. Each computes the units [begin, end) of the output, with
// `scratch` floats of memory of its own.
struct Kernels {
  const char* name;
  // Output channels that a panel of packed weights holds.
  int64_t panel;

  // Units are tiles of 2 x 2 or 4 x 4 outputs, windows first; kernels are 3 x 3, strides 1.
  // weight: (points, panels, channels, panel).
  void (*winograd2)(const Convolution&, int64_t begin, int64_t end, float* scratch);
  void (*winograd4)(const Convolution&, int64_t begin, int64_t end, float* scratch);
  // Units are output cells. weight: (panels, taps, channels, panel).
  void (*direct)(const Convolution&, int64_t begin, int64_t end, float* scratch);
  // Units are output cells, every channel by itself. weight: (taps, channels).
  void (*depthwise)(const Convolution&, int64_t begin, int64_t end, float* scratch);
  // Units are output cells.
  void (*maximum)(const Pooling&, int64_t begin, int64_t end, float* scratch);
  void (*average)(const Pooling&, int64_t begin, int64_t end, float* scratch);
};

// Floats of scratch for `units` units.
constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

constexpr int64_t winograd_scratch(int64_t tile, int64_t units, int64_t channels,
                                   int64_t out_channels, int64_t panel) {
  const int64_t points = (tile + 2) * (tile + 2);
  // Planes are apart by no power of two, or they would share cache lines.
  return points * (units * (channels + round_up(out_channels, panel)) + 32);
}

// Pointers to the cells that the units read, and the sums of a panel.
constexpr int64_t direct_scratch(int64_t units, int64_t taps, int64_t panel) {
  return 2 * units * (taps + 1) + units * panel;
}

const Kernels* portable_kernels();
// Null where the compiler cannot make them.
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

}  // namespace captum_krypton
