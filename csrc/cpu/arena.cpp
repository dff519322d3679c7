#include "arena.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace captum_krypton {
namespace {

// One piece of memory that blocks are cut out of, always at the lowest place with room: batches
// that ask for the same blocks get the same places, and what lies behind the highest one is never
// touched. It lives as long as its last block.
class Arena {
 public:
  static constexpr size_t kGrain = 64;  // bytes: a line of the caches, and torch's own alignment
  static constexpr size_t kHugePage = size_t{1} << 21;

  explicit Arena(size_t bytes) : memory_(std::malloc(bytes + kHugePage)) {
    if (!memory_) {
      return;  // no room for anything
    }
    const auto first = reinterpret_cast<uintptr_t>(memory_);
    start_ = reinterpret_cast<char*>((first + kHugePage - 1) / kHugePage * kHugePage);
    free_.emplace(0, bytes / kGrain * kGrain);
#ifdef MADV_HUGEPAGE
    madvise(start_, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // advice: it may fail
#endif
  }

  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { std::free(memory_); }

  // nullptr where there is no room.
  void* take(size_t bytes) {
    bytes = (bytes + kGrain - 1) / kGrain * kGrain;
    const std::lock_guard<std::mutex> guard(mutex_);
    for (auto hole = free_.begin(); hole != free_.end(); ++hole) {
      const auto [place, room] = *hole;
      if (room < bytes) {
        continue;
      }
      free_.erase(hole);
      if (room > bytes) {
        free_.emplace(place + bytes, room - bytes);
      }
      taken_.emplace(place, bytes);
      return start_ + place;
    }
    return nullptr;
  }

  void give_back(void* block) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = taken_.find(static_cast<size_t>(static_cast<char*>(block) - start_));
    size_t place = found->first, bytes = found->second;
    taken_.erase(found);
    const auto after = free_.lower_bound(place);
    if (after != free_.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second == place) {
        place = before->first;
        bytes += before->second;
        free_.erase(before);
      }
    }
    if (after != free_.end() && place + bytes == after->first) {
      bytes += after->second;
      free_.erase(after);
    }
    free_.emplace(place, bytes);
  }

 private:
  void* memory_;
  char* start_ = nullptr;
  std::map<size_t, size_t> free_, taken_;  // place -> bytes
  std::mutex mutex_;
};

thread_local std::shared_ptr<Arena> current;

std::vector<int64_t> strides_of(const std::vector<int64_t>& shape, MemoryFormat format) {
  std::vector<int64_t> strides(shape.size());
  const bool last = format != MemoryFormat::Contiguous;
  int64_t next = last ? shape[1] : 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    if (last && axis == 1) {
      strides[axis] = 1;
      continue;
    }
    strides[axis] = next;
    next *= shape[axis];
  }
  return strides;
}

Tensor empty_like_block(std::vector<int64_t> shape, Tensor like) {
  STD_TORCH_CHECK(like.is_cpu() && static_cast<int64_t>(shape.size()) == like.dim(),
                  "like is on another device than the CPU or of other rank than shape");
  return empty_block(shape, like, format_of(like));
}

// Bytes of the calling thread's arena from now on; 0 for none.
void use_arena(int64_t bytes) {
  STD_TORCH_CHECK(bytes >= 0, "bytes is ", bytes, "; expected 0 or more");
  current = bytes ? std::make_shared<Arena>(static_cast<size_t>(bytes)) : nullptr;
}

}  // namespace

Tensor empty_block(const std::vector<int64_t>& shape, const Tensor& like, MemoryFormat format) {
  if (current) {
    size_t bytes = like.element_size();
    for (const int64_t size : shape) {
      bytes *= static_cast<size_t>(size);
    }
    void* const block = bytes ? current->take(bytes) : nullptr;
    if (block) {
      return torch::stable::from_blob(block, shape, strides_of(shape, format), like.device(),
                                      like.scalar_type(),
                                      [arena = current](void* data) { arena->give_back(data); });
    }
  }
  return empty_in(shape, like, format);
}

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CPU, library) {
  library.impl("empty_block", TORCH_BOX(&empty_like_block));
}

STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CompositeExplicitAutograd, library) {
  library.impl("use_arena", TORCH_BOX(&use_arena));
}

}  // namespace captum_krypton
