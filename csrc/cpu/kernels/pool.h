// Max and average pooling.
#pragma once

#include "columns.h"

namespace captum_krypton {
namespace {

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

template <typename T, typename Kind>
KRYPTON_INLINE void pool(const Pooling& call, int64_t begin, int64_t end, float* scratch,
                         const Kind& kind) {
  const T** const cells = reinterpret_cast<const T**>(scratch);
  for (Runs run(call.out, begin, end); run.count; run.next()) {
    run_columns(columns(call, run, cells), run.count, kind);
  }
}

template <typename T>
void maximum(const Pooling& call, int64_t begin, int64_t end, float* scratch) {
  pool<T>(call, begin, end, scratch, Maximum{-__builtin_inff()});
}

template <typename T>
void average(const Pooling& call, int64_t begin, int64_t end, float* scratch) {
  pool<T>(call, begin, end, scratch, Average{call.scale});
}

}  // namespace
}  // namespace captum_krypton
