#include <cmath>

#include "cpu/ops.h"

namespace vitcop::cpu {
Tensor key_norm(const Tensor& keys) {
  glue::check_floating("keys", keys, 4, keys);
  const Tensor dense = keys.size(3) > 1 && keys.stride(3) != 1 ? glue::packed(keys) : keys;
  const int64_t batch = keys.size(0), heads = keys.size(1), tokens = keys.size(2), width = keys.size(3);
  const Tensor norms = glue::empty(keys, {batch, tokens}, Dtype::Float);
  const int64_t to_row = dense.stride(0), to_head = dense.stride(1), to_token = dense.stride(2);
  float* result = glue::output<float>(norms);
  glue::with_scalar(keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* values = glue::input<T>(dense);
    torch::stable::parallel_for(0, batch * tokens, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* own = values + i / tokens * to_row + i % tokens * to_token;
        double sum = 0;
        for (int64_t head = 0; head < heads; ++head) {
          const T* key = own + head * to_head;
          sum += sum_side_by_side<double>(width, [key](int64_t x) {
            const double value = widen(key[x]);
            return value * value;
          });
        }
        result[i] = static_cast<float>(std::sqrt(sum));
      }
    });
  });
  return norms;
}

}  // namespace vitcop::cpu
