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
    const Vectors<T> all = {keys, width, stride_batch, stride_head, stride_token, stride_element};
    if (all.are_packed()) {
      tile<true>(block, shared, all, row, first);
    } else {
      tile<false>(block, shared, all, row, first);
    }
  }

 private:
  template <bool kIsPacked, class Block>
  VITCOP_DEVICE void tile(const Block& block, Shared& shared, const Vectors<T>& all, int64_t row, int64_t first) const {
    fold_rows<kTile, kLanes>(
        block, shared.partial,
        [&](int64_t i, int64_t lane) {
          return first + i < tokens ? squares<kIsPacked>(all, all.at(row, 0, first + i), lane) : 0.0;
        },
        [](double a, double b) { return a + b; },
        [&](int64_t i, double sum) {
          if (first + i < tokens) norms[row * tokens + first + i] = static_cast<float>(::sqrt(sum));
        });
  }

  // The squares of one lane's share of a token, which are every kLanes-th pack of all heads in turn.
  template <bool kIsPacked>
  VITCOP_DEVICE double squares(const Vectors<T>& all, const T* token, int64_t lane) const {
    constexpr int kSums = kPacked<T> < 4 ? kPacked<T> : 4;  // side by side, not to wait for each other
    const int64_t packs = larger<int64_t>(all.packs(), 1), count = heads * all.packs();
    int64_t head = lane / packs, pack = lane % packs;
    double sums[kSums] = {};
    VITCOP_UNROLL
    for (int64_t index = lane; index < count; index += kLanes) {
      T numbers[kPacked<T>];
      all.template load<kIsPacked>(token + head * stride_head, pack, numbers);
      for (int k = 0; k < kPacked<T>; ++k) {
        const double value = widen(numbers[k]);
        sums[k % kSums] += value * value;
      }
      head += kLanes / packs;
      pack += kLanes % packs;
      if (pack >= packs) {
        pack -= packs;
        ++head;
      }
    }
    for (int half = kSums / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
    }
    return sums[0];
  }
};

}  // namespace vitcop
