// Numbers as they lie in memory, see `Storage`: load and store of vectors or single ones.
#pragma once

#include "vector.h"

namespace captum_krypton {
namespace {

struct Bfloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

// Whether numbers must be widened before they can be multiplied.
template <typename T>
constexpr bool kWidens = true;
template <>
constexpr bool kWidens<float> = false;

template <typename V>
using Word = typename Bits<V>::Type;

template <typename V>
using Short = typename Bits<V>::Short;

template <typename To, typename From>
KRYPTON_INLINE To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "all bits have a place");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// Integers of 16 bits as such of 32, and back, where they are small enough.
KRYPTON_INLINE uint32_t widen(uint16_t bits) { return bits; }
KRYPTON_INLINE uint16_t shorten(uint32_t bits) { return static_cast<uint16_t>(bits); }

#if KRYPTON_LANES == 4

KRYPTON_INLINE Word<Vector> widen(Short<Vector> bits) {
  return __builtin_convertvector(bits, Word<Vector>);
}

KRYPTON_INLINE Short<Vector> shorten(Word<Vector> bits) {
  return __builtin_convertvector(bits, Short<Vector>);
}

// By their definition: exponents of 5 bits around 15, and numbers without a leading one below them.
template <typename V>
KRYPTON_INLINE V from_half(Short<V> half) {
  constexpr uint32_t kInfinity = 0x7C00U << 13;
  const Word<V> bits = widen(half), rest = (bits & 0x7FFFU) << 13;
  const Word<V> scaled = same_bits<Word<V>>(same_bits<V>(rest) * 0x1p112F);
  const Word<V> found = rest >= kInfinity ? rest | 0x7F800000U : scaled;
  return same_bits<V>(found | (bits & 0x8000U) << 16);
}

template <typename V>
KRYPTON_INLINE Short<V> to_half(V value) {
  const Word<V> bits = same_bits<Word<V>>(value), rest = bits & 0x7FFFFFFFU;
  const V size = same_bits<V>(rest);
  // Of small ones the sum with 0.5 rounds what lies below 2^-24, the last place of a half.
  const Word<V> small = same_bits<Word<V>>(size + 0.5F) - 0x3F000000U;
  const Word<V> large = (rest + 0xFFFU + ((rest >> 13) & 1U) - 0x38000000U) >> 13;
  const Word<V> infinite = Word<V>{} + 0x7C00U, none = Word<V>{} + 0x7E00U;
  Word<V> found = size < 0x1p-14F ? small : large;
  found = size >= 65520.0F ? infinite : found;
  found = value == value ? found : none;
  return shorten(found | (bits >> 16 & 0x8000U));
}

#else  // x86-64 with F16C; compilers make worse code of conversions

#if KRYPTON_LANES == 16

KRYPTON_INLINE Word<Vector> widen(Short<Vector> bits) {
  return same_bits<Word<Vector>>(_mm512_maskz_cvtepu16_epi32(0xFFFF, same_bits<__m256i>(bits)));
}

KRYPTON_INLINE Short<Vector> shorten(Word<Vector> bits) {
  return same_bits<Short<Vector>>(_mm512_maskz_cvtepi32_epi16(0xFFFF, same_bits<__m512i>(bits)));
}

KRYPTON_INLINE Vector widen_half(Short<Vector> half) {
  return same_bits<Vector>(_mm512_maskz_cvtph_ps(0xFFFF, same_bits<__m256i>(half)));
}

KRYPTON_INLINE Short<Vector> shorten_to_half(Vector value) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT;
  return same_bits<Short<Vector>>(_mm512_maskz_cvtps_ph(0xFFFF, same_bits<__m512>(value), nearest));
}

#else

KRYPTON_INLINE Word<Vector> widen(Short<Vector> bits) {
  return same_bits<Word<Vector>>(_mm256_cvtepu16_epi32(same_bits<__m128i>(bits)));
}

KRYPTON_INLINE Short<Vector> shorten(Word<Vector> bits) {
  const __m256i all = same_bits<__m256i>(bits);
  const __m128i low = _mm256_castsi256_si128(all), high = _mm256_extracti128_si256(all, 1);
  return same_bits<Short<Vector>>(_mm_packus_epi32(low, high));
}

KRYPTON_INLINE Vector widen_half(Short<Vector> half) {
  return same_bits<Vector>(_mm256_cvtph_ps(same_bits<__m128i>(half)));
}

KRYPTON_INLINE Short<Vector> shorten_to_half(Vector value) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT;
  return same_bits<Short<Vector>>(_mm256_cvtps_ph(same_bits<__m256>(value), nearest));
}

#endif

KRYPTON_INLINE float widen_half(uint16_t half) { return _cvtsh_ss(half); }

KRYPTON_INLINE uint16_t shorten_to_half(float value) {
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
}

template <typename V>
KRYPTON_INLINE V from_half(Short<V> half) {
  return widen_half(half);
}

template <typename V>
KRYPTON_INLINE Short<V> to_half(V value) {
  return shorten_to_half(value);
}

#endif

template <typename V>
KRYPTON_INLINE V load(const Bfloat16* from) {
  Short<V> bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return same_bits<V>(widen(bits) << 16);
}

template <typename V>
KRYPTON_INLINE void store(Bfloat16* to, V value) {
  const Word<V> bits = same_bits<Word<V>>(value);
  const Word<V> rounded = bits + 0x7FFFU + ((bits >> 16) & 1U);
  const Word<V> none = Word<V>{} + 0x7FC00000U;
  const Short<V> found = shorten((value == value ? rounded : none) >> 16);
  __builtin_memcpy(to, &found, sizeof(found));
}

template <typename V>
KRYPTON_INLINE V load(const Half* from) {
  Short<V> bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return from_half<V>(bits);
}

template <typename V>
KRYPTON_INLINE void store(Half* to, V value) {
  const Short<V> bits = to_half<V>(value);
  __builtin_memcpy(to, &bits, sizeof(bits));
}

}  // namespace
}  // namespace captum_krypton
