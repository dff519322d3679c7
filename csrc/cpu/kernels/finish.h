// What is done to a sum before it is stored: of vectors or single numbers.
#pragma once

#include "storage.h"

namespace captum_krypton {
namespace {

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

// `slopes` are those of the numbers' channels, for PReLU.
template <typename V>
KRYPTON_INLINE V activate(V x, Activation activation, const float* slopes) {
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
    case Activation::kPrelu: {
      const V below = load<V>(slopes) * x;
      return x > V{} ? x : below;
    }
    default:
      return x;
  }
}

// What is done to a sum before it is stored.
template <typename T>
struct Finish {
  const float* bias;         // none: null
  const T* const* residual;  // by row; none: null
  const float* slope;        // by channel, for PReLU; others: null
  float low, high;
  Activation activation;

  KRYPTON_INLINE Finish(const Ending& ending, const T* const* added)
      : bias(ending.bias),
        residual(ending.residual ? added : nullptr),
        slope(ending.slope),
        low(ending.low),
        high(ending.high),
        activation(ending.activation) {}

  template <typename V>
  KRYPTON_INLINE V apply(V value, int64_t row, int64_t channel) const {
    value = add(value, row, channel);
    return activation == Activation::kNone ? value : activated(value, channel);
  }

  // All of it where there is no activation; else what comes before that.
  template <typename V>
  KRYPTON_INLINE V add(V value, int64_t row, int64_t channel) const {
    if (bias) {
      value += load<V>(bias + channel);
    }
    if (residual) {
      value += load<V>(residual[row] + channel);
    }
    if (activation == Activation::kNone) {
      clamp(value, low, high);
    }
    return value;
  }

  template <typename V>
  KRYPTON_INLINE V activated(V value, int64_t channel) const {
    value = activate(value, activation, slope ? slope + channel : nullptr);
    clamp(value, low, high);
    return value;
  }
};

}  // namespace
}  // namespace captum_krypton
