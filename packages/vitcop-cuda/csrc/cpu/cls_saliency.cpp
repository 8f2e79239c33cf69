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

// The query times the scale as float32, [B, H, e] without gaps.
std::vector<float> scaled(const Tensor& query, float scale) {
  const int64_t batch = query.size(0), heads = query.size(1), width = query.size(2);
  const int64_t to_row = query.stride(0), to_head = query.stride(1), to_next = query.stride(2);
  std::vector<float> result;
  result.reserve(batch * heads * width);
  glue::with_scalar(query, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* values = glue::input<T>(query);
    for (int64_t i = 0; i < batch * heads; ++i) {
      const T* own = values + i / heads * to_row + i % heads * to_head;
      for (int64_t x = 0; x < width; ++x) result.push_back(static_cast<float>(widen(own[x * to_next])) * scale);
    }
  });
  return result;
}

constexpr int64_t kHeads = 1;  // the dimension of [B, H, n] that is summed over

}  // namespace

Tensor cls_saliency(const Tensor& query_cls, const Tensor& keys, double scale) {
  glue::check_floating("keys", keys, 4, keys);
  glue::check_floating("query_cls", query_cls, 3, keys);
  const int64_t batch = keys.size(0), heads = keys.size(1), tokens = keys.size(2), width = keys.size(3);
  glue::check_shape("query_cls", query_cls, {batch, heads, width});
  const std::vector<float> query = scaled(query_cls, static_cast<float>(scale));
  const Tensor dense = width > 1 && keys.stride(3) != 1 ? glue::packed(keys) : keys;
  const int64_t to_row = dense.stride(0), to_head = dense.stride(1), to_token = dense.stride(2);
  const Tensor attention = glue::empty(keys, {batch, heads, tokens}, Dtype::Float);
  float* scores = glue::output<float>(attention);
  glue::with_scalar(keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* values = glue::input<T>(dense);
    torch::stable::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* own = values + i / heads * to_row + i % heads * to_head;
        const float* own_query = query.data() + i * width;
        for (int64_t token = 0; token < tokens; ++token) {
          const T* key = own + token * to_token;
          scores[i * tokens + token] = sum_side_by_side<float>(
              width, [&](int64_t x) { return static_cast<float>(widen(key[x])) * own_query[x]; });
        }
        softmax(scores + i * tokens, tokens);
      }
    });
  });
  return torch::stable::sum(attention, glue::Shape(kHeads));
}

}  // namespace vitcop::cpu
