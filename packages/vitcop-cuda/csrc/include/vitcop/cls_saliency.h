// Attention of the CLS token to every token, summed over heads (Equation 1).
#pragma once

#include <cmath>

#include "vitcop/order.h"

namespace vitcop {

// Scores of every head: query [B, H, e], keys [B, H, n, e] with any strides -> scores [B, H, n]. A unit is a tile of
// tokens of one head.
template <class T>
struct HeadScores {
  const T* query;
  const T* keys;
  float scale;
  int64_t batch, heads, tokens, width;
  int64_t query_stride_batch, query_stride_head, query_stride_element;
  int64_t stride_batch, stride_head, stride_token, stride_element;
  float* scores;

  // Lanes of a token: with 16 bytes each, a key of CLIP in half precision is one load.
  static constexpr int kOwnLanes = 8;
  static constexpr int kTokens = 32;
  static constexpr int kMostScaled = 256;  // numbers of the query that are scaled once; further ones at each use

  static constexpr int kThreads = kTokens * kOwnLanes;

  struct Shared {
    float query[kMostScaled];
    float partial[kTokens * kOwnLanes];
  };

  VITCOP_BOTH int64_t tiles() const { return ceil_div(tokens, kTokens); }
  VITCOP_BOTH int64_t units() const { return batch * heads * tiles(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t head = unit / tiles() % heads, row = unit / tiles() / heads, first = unit % tiles() * kTokens;
    const Vectors<T> all = {keys, width, stride_batch, stride_head, stride_token, stride_element};
    const T* own = query + row * query_stride_batch + head * query_stride_head;
    for_each(block, smaller<int64_t>(width, kMostScaled), [&](int64_t x) { shared.query[x] = scaled(own, x); });
    block.sync();
    if (all.are_packed()) {
      tile<true>(block, shared, all, own, row, head, first);
    } else {
      tile<false>(block, shared, all, own, row, head, first);
    }
  }

 private:
  VITCOP_DEVICE float scaled(const T* own, int64_t x) const {
    return static_cast<float>(widen(own[x * query_stride_element])) * scale;
  }

  template <bool kIsPacked, class Block>
  VITCOP_DEVICE void tile(const Block& block, Shared& shared, const Vectors<T>& all, const T* own, int64_t row,
                          int64_t head, int64_t first) const {
    const auto product = [&](int64_t i, int64_t lane) {
      float sum = 0;
      const T* token = all.at(row, head, first + i);
      const int64_t packs = first + i < tokens ? all.packs() : 0;
      for (int64_t pack = lane; pack < packs; pack += kOwnLanes) {
        T numbers[kPacked<T>];
        all.template load<kIsPacked>(token, pack, numbers);
        for (int k = 0; k < kPacked<T>; ++k) {
          const int64_t x = pack * kPacked<T> + k;
          if (!kIsPacked && x >= width) break;
          sum += static_cast<float>(widen(numbers[k])) * (x < kMostScaled ? shared.query[x] : scaled(own, x));
        }
      }
      return sum;
    };
    fold_rows<kTokens, kOwnLanes>(
        block, shared.partial, product, [](float a, float b) { return a + b; },
        [&](int64_t i, float score) {
          if (first + i < tokens) scores[((row * heads) + head) * tokens + first + i] = score;
        });
  }
};

// Softmax over the tokens of each head, and its sum over heads: scores [B, H, n] -> saliency [B, n]. A unit is kSlices
// tokens of a row; it looks at all tokens for the softmax, which costs less than another launch.
struct SumHeads {
  const float* scores;
  int64_t batch, heads, tokens;
  float* saliency;

  static constexpr int kHeads = 8;  // side by side

  static constexpr int kThreads = kHeads * kLanes;

  struct Shared {
    float largest[kHeads * kLanes];
    double sums[kHeads * kLanes];
    float top[kHeads];
    double sum[kHeads];
    double total[kSlices];
  };

  VITCOP_BOTH int64_t chunks() const { return ceil_div(tokens, kSlices); }
  VITCOP_BOTH int64_t units() const { return batch * chunks(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t row = unit / chunks(), first = unit % chunks() * kSlices;
    const int64_t count = smaller<int64_t>(kSlices, tokens - first);
    for_each(block, count, [&](int64_t i) { shared.total[i] = 0; });
    for (int64_t head = 0; head < heads; head += kHeads) {
      add_heads(block, shared, scores + (row * heads + head) * tokens, smaller<int64_t>(kHeads, heads - head), first,
                count);
    }
    for_each(block, count,
             [&](int64_t i) { saliency[row * tokens + first + i] = static_cast<float>(shared.total[i]); });
    block.sync();
  }

 private:
  // Adds the attention of up to kHeads heads to the total of `count` tokens from `first` on.
  template <class Block>
  VITCOP_DEVICE void add_heads(const Block& block, Shared& shared, const float* own, int64_t own_heads, int64_t first,
                               int64_t count) const {
    const auto power = [&](int64_t head, int64_t token) {
      return static_cast<double>(::expf(own[head * tokens + token] - shared.top[head]));
    };
    fold_rows<kHeads, kLanes>(
        block, shared.largest,
        [&](int64_t head, int64_t lane) {
          float largest = -kInfinity;
          for (int64_t i = lane; head < own_heads && i < tokens; i += kLanes) {
            largest = larger(largest, own[head * tokens + i]);
          }
          return largest;
        },
        [](float a, float b) { return larger(a, b); }, [&](int64_t head, float top) { shared.top[head] = top; });
    fold_rows<kHeads, kLanes>(
        block, shared.sums,
        [&](int64_t head, int64_t lane) {
          double sum = 0;
          for (int64_t i = lane; head < own_heads && i < tokens; i += kLanes) sum += power(head, i);
          return sum;
        },
        [](double a, double b) { return a + b; }, [&](int64_t head, double sum) { shared.sum[head] = sum; });
    for_each(block, count, [&](int64_t i) {
      double total = shared.total[i];
      for (int64_t head = 0; head < own_heads; ++head) {
        total += static_cast<float>(power(head, first + i) / shared.sum[head]);
      }
      shared.total[i] = total;
    });
    block.sync();  // before the next heads' tops are written
  }
};

}  // namespace vitcop
