// hash_tensors on a GPU: all contents of a model are read once, by a launch for many tensors.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../patch_index.h"
#include "launch.h"

namespace captum_krypton {
namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 8;  // words that a thread has on the way at a time
constexpr int kRounds = 8;  // times that it reads so many
constexpr int64_t kInBlock = int64_t{kThreads} * kAtOnce * kRounds;
constexpr int kParts = 128;          // tensors of a launch: what its arguments have room for
constexpr int64_t kChunk = 1 << 22;  // words after which the keys start anew

// As in captum_krypton/_kernels/hash_tensors.py.
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
constexpr uint64_t kFirst = 0xBF58476D1CE4E5B9u;
constexpr uint64_t kSecond = 0x94D049BB133111EBu;

KRYPTON_HOST_DEVICE constexpr uint64_t finalised(uint64_t word) {
  word = (word ^ (word >> 30)) * kFirst;
  word = (word ^ (word >> 27)) * kSecond;
  return word ^ (word >> 31);
}

KRYPTON_HOST_DEVICE constexpr uint64_t mixed(uint64_t word, int64_t number, uint64_t key) {
  const int64_t place = number % kChunk, first = number - place;
  word ^= finalised(static_cast<uint64_t>(place) * kGolden + key);
  word += first > 0 ? finalised(static_cast<uint64_t>(first)) : 0;
  return finalised(word);
}

struct Part {
  const unsigned char* bytes;
  int64_t size;
  int64_t first_block;
};

// The tensors of a launch. A thread adds to the sum of its tensor that has its own number.
struct Hashes {
  Part parts[kParts];
  int count;
  uint64_t key;
  uint64_t* sums;  // kThreads for each tensor
};

// A word of a tensor, whose bytes may begin anywhere; behind its last byte there are zeros.
KRYPTON_HOST_DEVICE uint64_t word_of(const Part& part, int64_t number) {
  const unsigned char* const at = part.bytes + number * 8;
  const int64_t rest = part.size - number * 8;
  if (rest >= 8 && reinterpret_cast<uintptr_t>(at) % 8 == 0) {
    return *reinterpret_cast<const uint64_t*>(at);
  }
  uint64_t word = 0;
  for (int64_t i = 0; i < 8 && i < rest; ++i) {
    word |= static_cast<uint64_t>(at[i]) << (8 * i);
  }
  return word;
}

#ifdef __CUDACC__
__device__ void add_to(uint64_t* sum, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}
#else
void add_to(uint64_t* sum, uint64_t value) { *sum += value; }
#endif

__global__ void __launch_bounds__(kThreads) hash_kernel(const Hashes hashes) {
  int number = 0, behind = hashes.count;
  while (behind - number > 1) {  // the last part that begins at this block or before
    const int middle = (number + behind) / 2;
    (hashes.parts[middle].first_block <= blockIdx.x ? number : behind) = middle;
  }
  const Part part = hashes.parts[number];
  const int64_t words = (part.size + 7) / 8;
  const int64_t first = (blockIdx.x - part.first_block) * kInBlock + threadIdx.x;
  uint64_t sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    const int64_t begin = first + int64_t{round} * kThreads * kAtOnce;
    uint64_t read[kAtOnce] = {};
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t word = begin + i * kThreads;
      read[i] = word < words ? word_of(part, word) : 0;
    }
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t word = begin + i * kThreads;
      sum += word < words ? mixed(read[i], word, hashes.key) : 0;
    }
  }
  add_to(hashes.sums + int64_t{number} * kThreads + threadIdx.x, sum);
}

// Sums whose sum over the second axis is the hash of each tensor, but for its size.
Tensor hash_tensors(std::vector<Tensor> tensors, int64_t key) {
  STD_TORCH_CHECK(!tensors.empty(), "tensors has none; expected one or more");
  const Tensor& like = tensors.front();
  STD_TORCH_CHECK(is_launchable(like), "tensors are not on the device of this kernel");
  const auto count = static_cast<int64_t>(tensors.size());
  Tensor sums = torch::stable::empty({count, kThreads}, ScalarType::Long, like.layout(),
                                     like.device(), std::nullopt, MemoryFormat::Contiguous);
  torch::stable::zero_(sums);
  const Launcher launcher(like);
  for (int64_t start = 0; start < count; start += kParts) {
    Hashes hashes = {};
    hashes.key = static_cast<uint64_t>(key);
    hashes.sums = static_cast<uint64_t*>(sums.mutable_data_ptr()) + start * kThreads;
    hashes.count = static_cast<int>(std::min<int64_t>(kParts, count - start));
    int64_t blocks = 0;
    for (int i = 0; i < hashes.count; ++i) {
      const Tensor& tensor = tensors[static_cast<size_t>(start + i)];
      STD_TORCH_CHECK(is_beside(tensor, like), "tensors are not all on one device");
      const int64_t size = tensor.numel() * static_cast<int64_t>(tensor.element_size());
      hashes.parts[i] = {static_cast<const unsigned char*>(tensor.const_data_ptr()), size, blocks};
      blocks += std::max<int64_t>(1, ((size + 7) / 8 + kInBlock - 1) / kInBlock);
    }
    launcher.run(hash_kernel, blocks, kThreads, hashes);
  }
  return sums;
}

}  // namespace

#ifdef __CUDACC__
STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CUDA, library) {
  library.impl("hash_tensors", TORCH_BOX(&hash_tensors));
}
#else
STABLE_TORCH_LIBRARY_FRAGMENT(captum_krypton_on_host, library) {
  library.def("hash_tensors(Tensor[] tensors, int key) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(captum_krypton_on_host, CPU, library) {
  library.impl("hash_tensors", TORCH_BOX(&hash_tensors));
}
#endif

}  // namespace captum_krypton
