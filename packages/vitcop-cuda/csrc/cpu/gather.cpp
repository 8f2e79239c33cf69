#include "vitcop/gather.h"

#include "cpu/ops.h"

namespace vitcop::cpu {

std::vector<Tensor> gather_tokens(const std::vector<Tensor>& tensors, const Tensor& index) {
  const glue::GatherArguments arguments(tensors, index);
  for (const Gather& kernel : arguments.kernels()) {
    torch::stable::parallel_for(0, kernel.units(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / kernel.places, token = kernel.index[unit];
        const bool is_there = token >= 0 && token < kernel.tokens;
        for (int p = 0; p < kernel.count; ++p) {
          const GatherPart& part = kernel.parts[p];
          if (part.bytes == 0) continue;  // no memory, and no pointer to any
          char* to = part.to + unit * part.bytes;
          if (is_there) {
            std::memcpy(to, part.from + row * part.stride_batch + token * part.stride_token, part.bytes);
          } else {
            std::memset(to, 0, part.bytes);
          }
        }
      }
    });
  }
  return arguments.results();
}

}  // namespace vitcop::cpu
