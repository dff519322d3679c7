// Memory for the outputs of kernels that is used again from batch to batch.
#pragma once

#include <cstdint>
#include <vector>

#include "../tensors.h"

namespace captum_krypton {

// A tensor without content, in the format's order, on the CPU: from the calling thread's arena
// where it has one with room, and as torch makes it otherwise.
Tensor empty_block(const std::vector<int64_t>& shape, const Tensor& like, MemoryFormat format);

}  // namespace captum_krypton
