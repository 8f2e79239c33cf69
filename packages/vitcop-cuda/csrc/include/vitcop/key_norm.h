// Norm of a token's keys over all heads (Equation 4).
#pragma once

#include <cmath>

#include "vitcop/scalar.h"

namespace vitcop {

// keys [B, G, n, e] with any strides (in elements) -> norms [B, n]. A unit is a tile of tokens of one row.
template <class T>
struct KeyNorms {
  const T* keys;
  int64_t batch, heads, tokens, width;
  int64_t stride_batch, stride_head, stride_token, stride_element;
  float* norms;

  static constexpr int kThreads = kTile * kLanes;

  struct Shared {
    double partial[kTile * kLanes];
  };

  VITCOP_BOTH int64_t tiles() const { return ceil_div(tokens, kTile); }
  VITCOP_BOTH int64_t units() const { return batch * tiles(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t row = unit / tiles(), first = unit % tiles() * kTile;
    for_each(block, kTile * kLanes, [&](int64_t item) {
      const int64_t token = first + item / kLanes, lane = item % kLanes;
      double sum = 0;
      if (token < tokens) {
        const T* own = keys + row * stride_batch + token * stride_token;
        for (int64_t head = 0; head < heads; ++head) {
          for (int64_t x = lane; x < width; x += kLanes) {
            const double value = widen(own[head * stride_head + x * stride_element]);
            sum += value * value;
          }
        }
      }
      shared.partial[item] = sum;
    });
    block.sync();
    fold_lanes(block, shared.partial, [](double a, double b) { return a + b; });
    for_each(block, smaller<int64_t>(kTile, tokens - first), [&](int64_t i) {
      norms[row * tokens + first + i] = static_cast<float>(::sqrt(shared.partial[i * kLanes]));
    });
    block.sync();
  }
};

}  // namespace vitcop
