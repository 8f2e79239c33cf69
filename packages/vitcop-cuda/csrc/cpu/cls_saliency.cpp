#include <cmath>

#include "cpu/ops.h"

namespace vitcop::cpu {
namespace {

// Turns the scores of a head into its attention, in place.
void softmax(float* scores, int64_t count) {
  float top = -kInfinity;
  for (int64_t i = 0; i < count; ++i) top = larger(top, scores[i]);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    scores[i] = std::exp(scores[i] - top);
    sum += scores[i];
  }
  for (int64_t i = 0; i < count; ++i) scores[i] = static_cast<float>(scores[i] / sum);
}

}  // namespace

Tensor cls_saliency(const Tensor& query_cls, const Tensor& keys, double scale) {
  glue::check_floating("keys", keys, 4, keys);
  glue::check_floating("query_cls", query_cls, 3, keys);
  const int64_t batch = keys.size(0), heads = keys.size(1), tokens = keys.size(2), width = keys.size(3);
  glue::check_shape("query_cls", query_cls, {batch, heads, width});
  const Tensor query = query_cls.to(at::kFloat).mul(static_cast<float>(scale)).contiguous();
  const Tensor dense = width > 1 && keys.stride(3) != 1 ? keys.contiguous() : keys;
  const Tensor attention = glue::empty_like(keys, {batch, heads, tokens}, at::kFloat);
  float* scores = glue::output<float>(attention);
  glue::with_scalar(keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* values = glue::input<T>(dense);
    at::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* own = values + i / heads * dense.stride(0) + i % heads * dense.stride(1);
        const float* own_query = query.const_data_ptr<float>() + i * width;
        for (int64_t token = 0; token < tokens; ++token) {
          const T* key = own + token * dense.stride(2);
          scores[i * tokens + token] = sum_side_by_side<float>(
              width, [&](int64_t x) { return static_cast<float>(widen(key[x])) * own_query[x]; });
        }
        softmax(scores + i * tokens, tokens);
      }
    });
  });
  return attention.sum(1);
}

}  // namespace vitcop::cpu
