// Joining: the channels of every cell come from one source after another.
#pragma once

#include "runs.h"

namespace captum_krypton {
namespace {

template <typename T>
KRYPTON_INLINE void join_cell(const Joining& call, const T* from, int64_t channels, int64_t first,
                              T* to) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    Vector value = load<Vector>(from + c);
    if (call.scale) {
      value = value * load<Vector>(call.scale + first + c) + load<Vector>(call.shift + first + c);
    }
    clamp(value, call.low, call.high);
    store(to + first + c, value);
  }
  for (; c < channels; ++c) {
    float value = load<float>(from + c);
    if (call.scale) {
      value = value * call.scale[first + c] + call.shift[first + c];
    }
    clamp(value, call.low, call.high);
    store(to + first + c, value);
  }
}

template <typename T>
void join(const Joining& call, int64_t begin, int64_t end, float*) {
  for (Runs run(call.out, begin, end); run.count; run.next()) {
    T* const to = run.data<T>();
    int64_t first = 0;
    for (int64_t number = 0; number < call.count; ++number) {
      const Source& source = call.sources[number];
      const Row<T> row = view<T>(source, run.window, run.plane).row(run.row);
      for (int64_t t = 0; t < run.count; ++t) {
        join_cell(call, row.at(run.column + t), source.channels, first, to + t * call.out.channels);
      }
      first += source.channels;
    }
  }
}

}  // namespace
}  // namespace captum_krypton
