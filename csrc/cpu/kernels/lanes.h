// Sums of products whose lanes are input channels: cells times weights as they are.
#pragma once

#include "storage.h"

namespace captum_krypton {
namespace {

// The lanes of two vectors by their numbers; those of the second come after those of the first.
template <int... Lanes>
KRYPTON_INLINE Vector pick(Vector first, Vector second) {
#if defined(__clang__)
  return __builtin_shufflevector(first, second, Lanes...);
#else
  return __builtin_shuffle(first, second, Word<Vector>{static_cast<uint32_t>(Lanes)...});
#endif
}

// Each lane added to the one `Apart` from it: of the first vector into lanes whose number lacks
// that bit, of the second into the others.
template <int Apart, int... Lanes>
KRYPTON_INLINE Vector merge(Vector first, Vector second, std::integer_sequence<int, Lanes...>) {
  constexpr int kCount = KRYPTON_LANES;
  const Vector kept = pick<(Lanes & Apart ? kCount + Lanes : Lanes)...>(first, second);
  const Vector others = pick<(Lanes & Apart ? Lanes : kCount + Lanes)...>(first, second);
  return kept + pick<(Lanes ^ Apart)...>(others, others);
}

// The totals of `Count` vectors: lane i is that of vector i, where `Count` is kLanes.
template <int Count>
KRYPTON_INLINE Vector totals(const Vector* vectors) {
  if constexpr (Count == 1) {
    return *vectors;
  } else {
    constexpr int kHalf = Count / 2;
    return merge<kHalf>(totals<kHalf>(vectors), totals<kHalf>(vectors + kHalf),
                        std::make_integer_sequence<int, KRYPTON_LANES>());
  }
}

constexpr int whole_vectors(int numbers) {
  return (numbers + KRYPTON_LANES - 1) / KRYPTON_LANES * KRYPTON_LANES;
}

// Stores the totals of `Count` vectors, and zeros until `whole_vectors(Count)`.
template <int Count>
KRYPTON_INLINE void store_totals(const Vector (&vectors)[Count], float* to) {
#pragma GCC unroll 4
  for (int first = 0; first < Count; first += KRYPTON_LANES) {
    Vector some[KRYPTON_LANES] = {};
#pragma GCC unroll 16
    for (int i = 0; i < KRYPTON_LANES; ++i) {
      if (first + i < Count) {
        some[i] = vectors[first + i];
      }
    }
    store(to + first, totals<KRYPTON_LANES>(some));
  }
}

// All bits of the last `count` lanes.
KRYPTON_INLINE Word<Vector> last_lanes(int64_t count) {
  uint32_t lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    lanes[i] = i < kLanes - count ? 0U : ~0U;
  }
  Word<Vector> found;
  __builtin_memcpy(&found, lanes, sizeof(found));
  return found;
}

// A vector, or the lanes of it that are `kept`, and zeros.
template <bool Part>
KRYPTON_INLINE Vector part(Vector all, Word<Vector> kept) {
  return Part ? same_bits<Vector>(same_bits<Word<Vector>>(all) & kept) : all;
}

// Adds products of one vector of channels, or of a part of it, of every cell and output channel.
template <int Cells, int Channels, bool Part, typename T>
KRYPTON_INLINE void add_vector(const T* const* cells, int64_t channel, const float* weight,
                               int64_t each, Word<Vector> kept, Vector (&sums)[Cells * Channels]) {
  Vector weights[Channels];
#pragma GCC unroll 4
  for (int k = 0; k < Channels; ++k) {
    weights[k] = part<Part>(load<Vector>(weight + k * each + channel), kept);
  }
#pragma GCC unroll 8
  for (int t = 0; t < Cells; ++t) {
    const Vector cell = part<Part>(load<Vector>(cells[t] + channel), kept);
#pragma GCC unroll 4
    for (int k = 0; k < Channels; ++k) {
      sums[t * Channels + k] += cell * weights[k];
    }
  }
}

// Adds the products of `depth` channels, at least kLanes, of every cell and output channel, whose
// weights are `each` numbers apart. The sums are those of a cell's output channels, then the
// next's.
template <int Cells, int Channels, typename T>
KRYPTON_INLINE void add_products(const T* const* cells, int64_t depth, const float* weight,
                                 int64_t each, Vector (&sums)[Cells * Channels]) {
  const T* read[Cells];
#pragma GCC unroll 8
  for (int t = 0; t < Cells; ++t) {
    read[t] = cells[t];
  }
  int64_t c = 0;
  for (; c + kLanes <= depth; c += kLanes) {
    add_vector<Cells, Channels, false>(read, c, weight, each, Word<Vector>{}, sums);
  }
  if (c < depth) {
    add_vector<Cells, Channels, true>(read, depth - kLanes, weight, each, last_lanes(depth - c),
                                      sums);
  }
}

}  // namespace
}  // namespace captum_krypton
