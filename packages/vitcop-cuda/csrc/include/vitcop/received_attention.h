// Attention that every token receives, mean over heads and over the tokens that pay it.
//
// The matrix of attention is never there: scores are made in square tiles, once to find what each query's softmax divides
// by, and once more for the sums over the queries. Beside the arguments it takes three numbers a token and head.
#pragma once

#include <cmath>

#include "vitcop/order.h"
#include "vitcop/rows.h"

namespace vitcop {

// One tile of scores, of a head's kSide queries and kSide keys: products that run over kDepth numbers at a time.
template <class T>
struct ScoreTile {
  static constexpr int kSide = 64, kDepth = 32;
  static constexpr int kStep = 16;           // an item takes every kStep-th query and key of the tile
  static constexpr int kOwn = kSide / kStep;  // so many of each
  static constexpr int kPitch = kSide + 1;   // from a query's scores to the next one's: not a multiple of the banks

  static constexpr int kThreads = kStep * kStep;

  struct Shared {
    float queries[kDepth * kSide];  // number by number, scaled
    float keys[kDepth * kSide];
    float scores[kSide * kPitch];
  };

  Vectors<T> queries, keys;  // [B, H, n, e] with any strides
  float scale;
  int64_t batch, heads;
  Rows rows;

  VITCOP_BOTH int64_t tiles() const { return ceil_div(rows.tokens, kSide); }
  VITCOP_BOTH int64_t units() const { return batch * heads * tiles(); }

  // Finds the scores of the queries from `first_query` on with the keys from `first_key` on; 0 past the row's end. Ends
  // with a sync().
  template <class Block>
  VITCOP_DEVICE void find(const Block& block, Shared& shared, int64_t row, int64_t head, int64_t first_query,
                          int64_t first_key) const {
    const int64_t length = rows.length(row);
    for (int64_t depth = 0; depth < larger<int64_t>(keys.width, 1); depth += kDepth) {
      load(block, shared.queries, queries, scale, row, head, first_query, length, depth);
      load(block, shared.keys, keys, 1.0f, row, head, first_key, length, depth);
      block.sync();
      for_each(block, kThreads, [&](int64_t item) { add_products(shared, item / kStep, item % kStep, depth == 0); });
      block.sync();
    }
  }

  static VITCOP_DEVICE float score(const Shared& shared, int64_t query, int64_t key) {
    return shared.scores[query * kPitch + key];
  }

 private:
  template <class Block>
  static VITCOP_DEVICE void load(const Block& block, float* to, const Vectors<T>& all, float factor, int64_t row,
                                 int64_t head, int64_t first, int64_t length, int64_t depth) {
    if (all.are_packed()) {
      load_packs<true>(block, to, all, factor, row, head, first, length, depth);
    } else {
      load_packs<false>(block, to, all, factor, row, head, first, length, depth);
    }
  }

  template <bool kIsPacked, class Block>
  static VITCOP_DEVICE void load_packs(const Block& block, float* to, const Vectors<T>& all, float factor, int64_t row,
                                       int64_t head, int64_t first, int64_t length, int64_t depth) {
    for_each(block, kSide * kDepth / kPacked<T>, [&](int64_t item) {
      const int64_t token = item % kSide, pack = item / kSide, from = depth / kPacked<T> + pack;
      T numbers[kPacked<T>] = {};
      if (first + token < length && from < all.packs()) {
        all.template load<kIsPacked>(all.at(row, head, first + token), from, numbers);
      }
      for (int k = 0; k < kPacked<T>; ++k) {
        to[(pack * kPacked<T> + k) * kSide + token] = static_cast<float>(widen(numbers[k])) * factor;
      }
    });
  }

  static VITCOP_DEVICE void add_products(Shared& shared, int64_t down, int64_t across, bool is_first) {
    float sums[kOwn][kOwn];
    for (int q = 0; q < kOwn; ++q) {
      for (int k = 0; k < kOwn; ++k) {
        sums[q][k] = is_first ? 0.0f : shared.scores[(down + q * kStep) * kPitch + across + k * kStep];
      }
    }
    VITCOP_UNROLL
    for (int x = 0; x < kDepth; ++x) {
      float mine[kOwn], theirs[kOwn];
      for (int q = 0; q < kOwn; ++q) mine[q] = shared.queries[x * kSide + down + q * kStep];
      for (int k = 0; k < kOwn; ++k) theirs[k] = shared.keys[x * kSide + across + k * kStep];
      for (int q = 0; q < kOwn; ++q) {
        for (int k = 0; k < kOwn; ++k) sums[q][k] += mine[q] * theirs[k];
      }
    }
    for (int q = 0; q < kOwn; ++q) {
      for (int k = 0; k < kOwn; ++k) shared.scores[(down + q * kStep) * kPitch + across + k * kStep] = sums[q][k];
    }
  }
};

// e to the power of a score less the largest one; 0 of a score that is none, also where all are none.
VITCOP_DEVICE float weight_of(float score, float top) { return score == -kInfinity ? 0.0f : ::expf(score - top); }

// Of every query the largest score and the sum of the weights: tops [B, H, n] and sums [B, H, n]. A unit is a tile of
// queries of one head, which goes over the keys tile by tile.
template <class T>
struct QuerySums {
  using Tile = ScoreTile<T>;
  static constexpr int kSide = Tile::kSide;
  static constexpr int kOwnLanes = 4;  // of a query
  static constexpr int kShare = kSide / kOwnLanes;

  Tile tile;
  float* tops;
  double* sums;

  static constexpr int kThreads = Tile::kThreads;

  struct Shared {
    typename Tile::Shared tile;
    double partial[kSide * kOwnLanes];
    float largest[kSide * kOwnLanes];
    float top[kSide], next[kSide];
    double sum[kSide];
  };

  VITCOP_BOTH int64_t units() const { return tile.units(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t head = unit / tile.tiles() % tile.heads, row = unit / tile.tiles() / tile.heads;
    const int64_t first = unit % tile.tiles() * kSide, length = tile.rows.length(row);
    if (first >= length) return;
    for_each(block, kSide, [&](int64_t i) {
      shared.top[i] = -kInfinity;
      shared.sum[i] = 0;
    });
    for (int64_t key = 0; key < length; key += kSide) {
      tile.find(block, shared.tile, row, head, first, key);
      add_keys(block, shared, smaller<int64_t>(kSide, length - key));
    }
    const int64_t start = (row * tile.heads + head) * tile.rows.tokens + first;
    for_each(block, smaller<int64_t>(kSide, length - first), [&](int64_t i) {
      tops[start + i] = shared.top[i];
      sums[start + i] = shared.sum[i];
    });
    block.sync();
  }

 private:
  // Takes `count` keys into the sums, which are in units of the largest score so far.
  template <class Block>
  VITCOP_DEVICE void add_keys(const Block& block, Shared& shared, int64_t count) const {
    fold_rows<kSide, kOwnLanes>(
        block, shared.largest,
        [&](int64_t i, int64_t lane) {
          float largest = -kInfinity;
          for (int64_t k = lane * kShare; k < smaller<int64_t>((lane + 1) * kShare, count); ++k) {
            largest = larger(largest, Tile::score(shared.tile, i, k));
          }
          return largest;
        },
        [](float a, float b) { return larger(a, b); },
        [&](int64_t i, float largest) { shared.next[i] = larger(shared.top[i], largest); });
    fold_rows<kSide, kOwnLanes>(
        block, shared.partial,
        [&](int64_t i, int64_t lane) {
          double sum = 0;
          for (int64_t k = lane * kShare; k < smaller<int64_t>((lane + 1) * kShare, count); ++k) {
            sum += static_cast<double>(weight_of(Tile::score(shared.tile, i, k), shared.next[i]));
          }
          return sum;
        },
        [](double a, double b) { return a + b; },
        [&](int64_t i, double sum) {
          shared.sum[i] = shared.sum[i] * static_cast<double>(weight_of(shared.top[i], shared.next[i])) + sum;
          shared.top[i] = shared.next[i];
        });
  }
};

// What every key receives of each head: received [B, H, n]. A unit is a tile of keys of one head, which goes over the
// queries tile by tile.
template <class T>
struct KeySums {
  using Tile = ScoreTile<T>;
  static constexpr int kSide = Tile::kSide;
  static constexpr int kOwnLanes = 4;  // of a key
  static constexpr int kShare = kSide / kOwnLanes;

  Tile tile;
  const float* tops;
  const double* sums;
  double* received;

  static constexpr int kThreads = Tile::kThreads;

  struct Shared {
    typename Tile::Shared tile;
    double partial[kSide * kOwnLanes];
    float top[kSide];
    double sum[kSide];
    double total[kSide];
  };

  VITCOP_BOTH int64_t units() const { return tile.units(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t head = unit / tile.tiles() % tile.heads, row = unit / tile.tiles() / tile.heads;
    const int64_t first = unit % tile.tiles() * kSide, length = tile.rows.length(row);
    if (first >= length) return;
    const int64_t start = (row * tile.heads + head) * tile.rows.tokens;
    for_each(block, kSide, [&](int64_t i) { shared.total[i] = 0; });
    for (int64_t query = 0; query < length; query += kSide) {
      const int64_t count = smaller<int64_t>(kSide, length - query);
      for_each(block, count, [&](int64_t i) {
        shared.top[i] = tops[start + query + i];
        shared.sum[i] = sums[start + query + i];
      });
      tile.find(block, shared.tile, row, head, query, first);
      fold_rows<kSide, kOwnLanes>(
          block, shared.partial,
          [&](int64_t key, int64_t lane) {
            double sum = 0;
            for (int64_t i = lane * kShare; i < smaller<int64_t>((lane + 1) * kShare, count); ++i) {
              sum += static_cast<double>(weight_of(Tile::score(shared.tile, i, key), shared.top[i])) / shared.sum[i];
            }
            return sum;
          },
          [](double a, double b) { return a + b; }, [&](int64_t key, double sum) { shared.total[key] += sum; });
    }
    for_each(block, smaller<int64_t>(kSide, length - first),
             [&](int64_t i) { received[start + first + i] = shared.total[i]; });
    block.sync();
  }
};

// The mean over heads and queries: received [B, H, n] -> mean [B, n], 0 in padding. A unit is kSlices tokens of a row.
struct MeanReceived {
  const double* received;
  int64_t batch, heads;
  Rows rows;
  float* mean;

  static constexpr int kThreads = kSlices;

  struct Shared {};

  VITCOP_BOTH int64_t chunks() const { return ceil_div(rows.tokens, kSlices); }
  VITCOP_BOTH int64_t units() const { return batch * chunks(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& /*shared*/, int64_t unit) const {
    const int64_t row = unit / chunks(), first = unit % chunks() * kSlices, length = rows.length(row);
    for_each(block, smaller<int64_t>(kSlices, rows.tokens - first), [&](int64_t i) {
      const int64_t token = first + i;
      double sum = 0;
      for (int64_t head = 0; token < length && head < heads; ++head) {
        sum += received[(row * heads + head) * rows.tokens + token];
      }
      mean[row * rows.tokens + token] =
          token < length ? static_cast<float>(sum / static_cast<double>(heads * length)) : 0.0f;
    });
  }
};

}  // namespace vitcop
