// finish_block on a GPU: what follows a convolution, in one pass over its sums.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include "../activation.h"
#include "../tensors.h"
#include "lanes.h"
#include "launch.h"
#include "window_place.h"

namespace captum_krypton {
namespace {

constexpr int kThreads = 256;

// Sums, numbered by vectors as they lie in memory; bias and slope are those of the vector's place:
// `repeats` neighbours have the same one, and after `places` they start anew.
template <typename Scalar, typename Real, typename Index>
struct Finish {
  Scalar* sums;
  const Scalar* bias;      // null: none
  const Scalar* residual;  // null: none
  const Scalar* slope;     // for PReLU; others: null
  Real low, high;
  Activation activation;
  Index count;
  Divisor<Index> repeats, places;
};

template <typename Real>
KRYPTON_HOST_DEVICE Real activated(Real x, Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      return x * Real(0.5) * (Real(1) + std::erf(x * Real(0.70710678118654752440)));
    case Activation::kSilu:
      return x / (Real(1) + std::exp(-x));
    case Activation::kHardswish: {
      const Real moved = x + Real(3);
      return x * (moved < 0 ? Real(0) : (moved > 6 ? Real(6) : moved)) / Real(6);
    }
    default:
      return x;
  }
}

template <typename Scalar, typename Real, int kLanes, typename Index>
__global__ void __launch_bounds__(kThreads) finish_kernel(const Finish<Scalar, Real, Index> work) {
  using Vector = Lanes<Scalar, kLanes>;
  const Index step = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index number = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
       number < work.count; number += step) {
    auto* const place = reinterpret_cast<Vector*>(work.sums) + number;
    Vector sums = *place, bias = {}, residual = {}, slope = {};
    if (work.bias != nullptr || work.slope != nullptr) {
      Index rest = work.repeats.divide(number);
      const Index channel = split(rest, work.places);
      if (work.bias != nullptr) {
        bias = reinterpret_cast<const Vector*>(work.bias)[channel];
      }
      if (work.slope != nullptr) {
        slope = reinterpret_cast<const Vector*>(work.slope)[channel];
      }
    }
    if (work.residual != nullptr) {
      residual = reinterpret_cast<const Vector*>(work.residual)[number];
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      auto value = static_cast<Real>(sums.values[lane]);
      if (work.bias != nullptr) {
        value += static_cast<Real>(bias.values[lane]);
      }
      if (work.residual != nullptr) {
        value += static_cast<Real>(residual.values[lane]);
      }
      if (work.slope != nullptr) {
        value = value > 0 ? value : value * static_cast<Real>(slope.values[lane]);
      }
      value = activated(value, work.activation);
      value = value < work.low ? work.low : value;
      value = value > work.high ? work.high : value;
      sums.values[lane] = static_cast<Scalar>(value);
    }
    *place = sums;
  }
}

// A call's tensors: of one format, of one type, side by side.
struct Call {
  Tensor sums;
  std::optional<Tensor> bias, residual, slope;
  double low, high;
  Activation activation;
  int64_t channels, repeats;  // neighbouring sums of one channel

  template <typename Scalar>
  static const Scalar* data(const std::optional<Tensor>& tensor) {
    return tensor ? static_cast<const Scalar*>(tensor->const_data_ptr()) : nullptr;
  }
};

template <typename Scalar, typename Real, int kLanes, typename Index>
void launch(const Launcher& launcher, const Call& call) {
  const int64_t count = call.sums.numel() / kLanes;
  const Finish<Scalar, Real, Index> work{static_cast<Scalar*>(call.sums.mutable_data_ptr()),
                                         Call::data<Scalar>(call.bias),
                                         Call::data<Scalar>(call.residual),
                                         Call::data<Scalar>(call.slope),
                                         static_cast<Real>(call.low),
                                         static_cast<Real>(call.high),
                                         call.activation,
                                         static_cast<Index>(count),
                                         Divisor<Index>(kLanes == 1 ? call.repeats : 1),
                                         Divisor<Index>(call.channels / kLanes)};
  launcher.run(finish_kernel<Scalar, Real, kLanes, Index>,
               std::min((count + kThreads - 1) / kThreads, kMostBlocks), kThreads, work);
}

template <typename Scalar, typename Real, int kLanes>
void launch(const Launcher& launcher, const Call& call) {
  if (call.sums.numel() <= kMost32) {
    launch<Scalar, Real, kLanes, uint32_t>(launcher, call);
  } else {
    launch<Scalar, Real, kLanes, uint64_t>(launcher, call);
  }
}

// 16 bytes at a time where channels are last and the places allow it, else one number.
template <typename Scalar, typename Real>
void launch(const Launcher& launcher, const Call& call) {
  constexpr int kWide = 16 / sizeof(Scalar);
  const bool aligned =
      are_aligned({call.sums.const_data_ptr(), Call::data<Scalar>(call.bias),
                   Call::data<Scalar>(call.residual), Call::data<Scalar>(call.slope)});
  if (call.repeats == 1 && call.channels % kWide == 0 && aligned) {
    launch<Scalar, Real, kWide>(launcher, call);
  } else {
    launch<Scalar, Real, 1>(launcher, call);
  }
}

// Where there is a tensor, it has a number for each channel of the sums.
void pack_channels(const char* name, const Tensor& sums, std::optional<Tensor>& tensor) {
  if (tensor) {
    STD_TORCH_CHECK(is_beside(*tensor, sums) && tensor->scalar_type() == sums.scalar_type() &&
                        tensor->dim() == 1 && tensor->size(0) == sums.size(1),
                    name, " is not one number for each channel of sums, of its dtype and device");
    tensor = pack(*tensor, MemoryFormat::Contiguous);
  }
}

Tensor finish_block(Tensor sums, std::optional<Tensor> bias, std::optional<Tensor> residual,
                    double low, double high, int64_t activation, std::optional<Tensor> slope) {
  STD_TORCH_CHECK(is_launchable(sums), "sums is not on the device of this kernel");
  STD_TORCH_CHECK(sums.dim() >= 2, "sums has ", sums.dim(), " axes; expected 2 or more");
  STD_TORCH_CHECK(activation >= 0 && activation < kActivations, "activation is ", activation,
                  "; expected 0 to ", kActivations - 1);
  const MemoryFormat format = format_of(sums);
  STD_TORCH_CHECK(is_packed(sums, format), "sums has gaps between its numbers");
  const int64_t channels = sums.size(1);
  STD_TORCH_CHECK(slope.has_value() == (static_cast<Activation>(activation) == Activation::kPrelu),
                  "slope comes with PReLU, and with nothing else");
  pack_channels("bias", sums, bias);
  pack_channels("slope", sums, slope);
  if (residual) {
    bool same = is_beside(*residual, sums) && residual->scalar_type() == sums.scalar_type() &&
                residual->dim() == sums.dim();
    for (int64_t axis = 0; same && axis < sums.dim(); ++axis) {
      same = residual->size(axis) == sums.size(axis);
    }
    STD_TORCH_CHECK(same, "residual is not of the shape, dtype and device of sums");
    residual = pack(*residual, format);
  }
  if (sums.numel() == 0) {
    return sums;
  }
  const bool last = format != MemoryFormat::Contiguous;
  const Launcher launcher(sums);
  const Call call{sums,
                  bias,
                  residual,
                  slope,
                  low,
                  high,
                  static_cast<Activation>(activation),
                  channels,
                  last ? 1 : sums.numel() / (sums.size(0) * channels)};
  switch (sums.scalar_type()) {
    case ScalarType::Float:
      launch<float, float>(launcher, call);
      break;
    case ScalarType::Double:
      launch<double, double>(launcher, call);
      break;
    case ScalarType::Half:
      launch<torch::headeronly::Half, float>(launcher, call);
      break;
    case ScalarType::BFloat16:
      launch<torch::headeronly::BFloat16, float>(launcher, call);
      break;
    default:
      STD_TORCH_CHECK(false, "sums is not of float64, float32, float16 or bfloat16");
  }
  return sums;
}

}  // namespace

#ifdef __CUDACC__
STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CUDA, library) {
  library.impl("finish_block", TORCH_BOX(&finish_block));
}
#else
STABLE_TORCH_LIBRARY_FRAGMENT(captum_krypton_on_host, library) {
  library.def(
      "finish_block(Tensor(a!) sums, Tensor? bias, Tensor? residual, float low, float high, "
      "int activation, Tensor? slope=None) -> Tensor(a!)");
}
STABLE_TORCH_LIBRARY_IMPL(captum_krypton_on_host, CPU, library) {
  library.impl("finish_block", TORCH_BOX(&finish_block));
}
#endif

}  // namespace captum_krypton
