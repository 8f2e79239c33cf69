// Attention of the CLS token to every token, summed over heads (Equation 1).
#pragma once

#include <cmath>

#include "vitcop/order.h"

namespace vitcop {

// Softmax of one head's scores: query [B, H, e], keys [B, H, n, e] with any strides -> probabilities [B, H, n]. A unit
// is a head of a row.
template <class T>
struct HeadAttention {
  const T* query;
  const T* keys;
  float scale;
  int64_t batch, heads, tokens, width;
  int64_t query_stride_batch, query_stride_head, query_stride_element;
  int64_t stride_batch, stride_head, stride_token, stride_element;
  float* probabilities;

  static constexpr int kThreads = kSlices;

  struct Shared {
    float largest[kSlices];
    double sums[kSlices];
  };

  VITCOP_BOTH int64_t units() const { return batch * heads; }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t row = unit / heads, head = unit % heads;
    const T* own_query = query + row * query_stride_batch + head * query_stride_head;
    const T* own_keys = keys + row * stride_batch + head * stride_head;
    float* scores = probabilities + unit * tokens;
    for_each(block, tokens, [&](int64_t token) {
      float score = 0;
      for (int64_t x = 0; x < width; ++x) {
        const float scaled = static_cast<float>(widen(own_query[x * query_stride_element])) * scale;
        score += static_cast<float>(widen(own_keys[token * stride_token + x * stride_element])) * scaled;
      }
      scores[token] = score;
    });
    block.sync();
    for_each(block, kSlices, [&](int64_t slice) {
      float largest = -kInfinity;
      for (int64_t token = slice; token < tokens; token += kSlices) largest = larger(largest, scores[token]);
      shared.largest[slice] = largest;
    });
    block.sync();
    const float top = fold<kSlices>(block, shared.largest, [](float a, float b) { return larger(a, b); });
    const double sum =
        sum_over(block, shared.sums, tokens, [&](int64_t i) { return static_cast<double>(::expf(scores[i] - top)); });
    for_each(block, tokens,
             [&](int64_t i) { scores[i] = static_cast<float>(static_cast<double>(::expf(scores[i] - top)) / sum); });
    block.sync();
  }
};

// Sum over heads: probabilities [B, H, n] -> saliency [B, n]. A unit is kSlices tokens of a row.
struct SumHeads {
  const float* probabilities;
  int64_t batch, heads, tokens;
  float* saliency;

  static constexpr int kThreads = kSlices;

  struct Shared {};

  VITCOP_BOTH int64_t chunks() const { return ceil_div(tokens, kSlices); }
  VITCOP_BOTH int64_t units() const { return batch * chunks(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& /*shared*/, int64_t unit) const {
    const int64_t row = unit / chunks(), first = unit % chunks() * kSlices;
    for_each(block, smaller<int64_t>(kSlices, tokens - first), [&](int64_t i) {
      double sum = 0;
      for (int64_t head = 0; head < heads; ++head) sum += probabilities[(row * heads + head) * tokens + first + i];
      saliency[row * tokens + first + i] = static_cast<float>(sum);
    });
  }
};

}  // namespace vitcop
