// Vectors of KRYPTON_LANES floats.
//
// Every header here is included by one file for each instruction set, inside a region that is
// compiled for it; ../kernels.h comes before that region. No function here may have a twin
// elsewhere, or the linker could keep the wrong one: everything is in an unnamed namespace, and
// nothing of the standard library is called.
#pragma once

#include "../kernels.h"

namespace captum_krypton {
namespace {

#define KRYPTON_INLINE inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(KRYPTON_LANES * sizeof(float))));

// The integers of a vector's lanes, or of a number, and those of half their size.
template <typename V>
struct Bits;

template <>
struct Bits<float> {
  typedef uint32_t Type;
  typedef uint16_t Short;
};

template <>
struct Bits<Vector> {
  typedef uint32_t Type __attribute__((vector_size(KRYPTON_LANES * sizeof(uint32_t))));
  typedef uint16_t Short __attribute__((vector_size(KRYPTON_LANES * sizeof(uint16_t))));
};

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

// Half as many floats as `Count`. GCC makes no vectors whose size depends on a template's argument.
template <int Count>
struct Halved;

template <>
struct Halved<16> {
  typedef float Type __attribute__((vector_size(8 * sizeof(float))));
};

template <>
struct Halved<8> {
  typedef float Type __attribute__((vector_size(4 * sizeof(float))));
};

template <>
struct Halved<4> {
  typedef float Type __attribute__((vector_size(2 * sizeof(float))));
};

// Halves are added until one number is left.
template <int Count>
KRYPTON_INLINE float total(const float* numbers) {
  if constexpr (Count == 2) {
    return numbers[0] + numbers[1];
  } else {
    typedef typename Halved<Count>::Type Sums;
    float sums[Count / 2];
    store(sums, load<Sums>(numbers) + load<Sums>(numbers + Count / 2));
    return total<Count / 2>(sums);
  }
}

KRYPTON_INLINE float total(Vector numbers) {
  float all[kLanes];
  store(all, numbers);
  return total<KRYPTON_LANES>(all);
}

}  // namespace
}  // namespace captum_krypton
