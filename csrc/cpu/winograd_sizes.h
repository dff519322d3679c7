// The sizes of Winograd's algorithm, which its caller and its kernels must agree on.
#pragma once

#include <cstdint>

namespace captum_krypton {

// Winograd's algorithm F(m, r) computes m outputs of r taps from m + r - 1 products: it
// interpolates at infinity and at the first m + r - 2 of 0, a, -a, b, -b and so on. Weights are
// transformed once, for all points that an axis has, and serve every m. More than r taps are groups
// of r, whose products are summed. Points of about one size keep rounding errors small.
//
// The axes are height and width. Taps along the depth are groups of their own, of one tap each.
//
// Groups have three taps; four where that takes fewer products and there is no second axis to
// multiply the errors.
constexpr int group_taps(const int64_t (&kernel)[3]) {
  const int64_t taps = kernel[1] * kernel[2];
  const bool flat = kernel[1] == 1 || kernel[2] == 1;
  return flat && (taps == 4 || taps == 7 || taps == 8) ? 4 : 3;
}

// The positive points, by the taps of a group, how many points there are in all, and how many
// outputs of a tile at most.
constexpr double kPairsOfThree[] = {0.625, 1.5};
constexpr double kPairsOfFour[] = {0.5, 1.0, 2.0};
template <int Pairs>
constexpr int points_of(const double (&)[Pairs]) {
  return 2 * Pairs + 2;
}
constexpr int group_points(int taps) {
  return taps == 4 ? points_of(kPairsOfFour) : points_of(kPairsOfThree);
}
constexpr int group_outputs(int taps) { return group_points(taps) - taps + 1; }

// Along an axis of so many taps: groups, at most kMostGroups of them, points, and outputs of a tile
// at most. One tap is left alone.
constexpr int64_t axis_groups(int64_t taps, int group) { return (taps + group - 1) / group; }
constexpr int axis_points(int64_t taps, int group) { return taps == 1 ? 1 : group_points(group); }
constexpr int axis_outputs(int64_t taps, int group) { return taps == 1 ? 1 : group_outputs(group); }
constexpr int kMostGroups = 3;
constexpr int kMostOutputs = group_outputs(4);
static_assert(kMostOutputs >= group_outputs(3), "groups of four taps have the most outputs");

// Products that Winograd's algorithm makes for every tile and output channel: `depth` of them at
// each of `points`.
constexpr int64_t winograd_points(const int64_t (&kernel)[3]) {
  const int group = group_taps(kernel);
  return axis_points(kernel[1], group) * axis_points(kernel[2], group);
}
constexpr int64_t winograd_depth(const int64_t (&kernel)[3], int64_t channels) {
  const int group = group_taps(kernel);
  return kernel[0] * axis_groups(kernel[1], group) * axis_groups(kernel[2], group) * channels;
}

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Floats of scratch for a block of tiles. Planes are apart by no power of two, or they would share
// cache lines.
constexpr int64_t winograd_scratch(int64_t points, int64_t tiles, int64_t depth,
                                   int64_t out_channels, int64_t panel) {
  return points * (tiles * (depth + round_up(out_channels, panel)) + 32) +
         (kMostOutputs * kMostOutputs + 1) * tiles;
}

}  // namespace captum_krypton
