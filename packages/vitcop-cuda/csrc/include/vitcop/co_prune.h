// Co-pruning (Algorithm 3): who stays, who is merged with whom, and the means.
#pragma once

#include "vitcop/order.h"
#include "vitcop/rows.h"

namespace vitcop {

// Which token goes into which output; integers only. A unit is a row.
//
// Three cases, by row. Budget for every token: all are elites. More clusters than budget: no elites, and the clusters of
// smallest norm stay groups while all others become one more. Otherwise: elites by quota (Equation 5).
struct Assign {
  const int64_t* labels;  // [B, n]
  const float* norms;     // [B, n]
  int64_t batch, clusters;
  Rows rows;          // `most` is the budget
  int64_t* index;     // [B, budget] ascending, n past a row's own
  bool* is_merged;    // [B, budget]
  int64_t* slot;      // [B, n], the budget in padding
  int32_t* members;   // [B, n], the tokens of each output in turn
  int32_t* starts;    // [B, budget + 1], where each output's members start
  int32_t* workspace;  // [B, workspace_size(n, clusters)]

  static constexpr int kThreads = 256;

  struct Shared {
    int32_t scan[2 * kSlices];
    int64_t sums[kSlices];
    SortScratch sort;
  };

  // Numbers of the workspace of a row: two arrays of keys, then what `Row` lists. Even, so that keys stay aligned.
  VITCOP_BOTH static int64_t workspace_size(int64_t tokens, int64_t clusters) {
    return (8 * tokens + 9 * clusters + 1) / 2 * 2;
  }

  VITCOP_BOTH int64_t units() const { return batch; }

  // The workspace of one row.
  struct Row {
    uint64_t* keys;          // [n]
    uint64_t* cluster_keys;  // [c]
    int32_t *order, *place;  // [n], tokens by cluster, norm and index
    int32_t *group, *before, *group_size, *stands;  // [n]
    int32_t *start, *size, *quota, *room, *remainder, *cluster_group, *group_slot;  // [c]

    VITCOP_DEVICE Row(int32_t* at, int64_t n, int64_t c) {
      keys = reinterpret_cast<uint64_t*>(at);
      cluster_keys = keys + n;
      at += 2 * n + 2 * c;
      int32_t** const by_token[] = {&order, &place, &group, &before, &group_size, &stands};
      for (int32_t** array : by_token) {
        *array = at;
        at += n;
      }
      int32_t** const by_cluster[] = {&start, &size, &quota, &room, &remainder, &cluster_group, &group_slot};
      for (int32_t** array : by_cluster) {
        *array = at;
        at += c;
      }
    }

    VITCOP_DEVICE int32_t cluster_of(int64_t token) const { return static_cast<int32_t>(keys[token] >> 32); }
  };

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t row) const {
    const Row own(workspace + row * workspace_size(rows.tokens, clusters), rows.tokens, clusters);
    const int64_t budget = rows.budget(row);
    // A row that may keep nothing is a row without tokens.
    const int64_t tokens = budget == 0 ? 0 : rows.length(row);
    sort_tokens(block, shared, own, row, tokens);
    const int64_t used = sum_over(block, shared.sums, clusters, [&](int64_t c) { return int64_t{own.size[c] > 0}; });
    if (budget >= tokens) {
      for_each(block, clusters, [&](int64_t c) { own.quota[c] = own.size[c]; });
    } else if (used > budget) {
      for_each(block, clusters, [&](int64_t c) { own.quota[c] = 0; });
      pool_clusters(block, own, row, budget);
    } else {
      share_out(block, shared, own, tokens, budget - used);
    }
    block.sync();
    choose_outputs(block, shared, own, row, tokens);
  }

 private:
  // Sorts the tokens by cluster, norm and index, and finds each cluster's start and size.
  template <class Block>
  VITCOP_DEVICE void sort_tokens(const Block& block, Shared& shared, const Row& own, int64_t row, int64_t tokens) const {
    for_each(block, tokens, [&](int64_t i) {
      const int64_t label = smaller(larger(labels[row * rows.tokens + i], int64_t{0}), clusters - 1);
      const float norm = without_nan(norms[row * rows.tokens + i], kInfinity);
      own.keys[i] = static_cast<uint64_t>(label) << 32 | ascending(norm);
    });
    for_each(block, clusters, [&](int64_t c) {
      own.start[c] = own.size[c] = 0;
      own.cluster_group[c] = static_cast<int32_t>(c);
    });
    block.sync();
    sort_by_key(block, own.keys, tokens, 32 + bits_of(clusters - 1), own.order, own.place, shared.sort);
    for_each(block, tokens, [&](int64_t p) {
      const int32_t cluster = own.cluster_of(own.order[p]);
      if (p == 0 || own.cluster_of(own.order[p - 1]) != cluster) own.start[cluster] = static_cast<int32_t>(p);
    });
    block.sync();
    for_each(block, tokens, [&](int64_t p) {
      const int32_t cluster = own.cluster_of(own.order[p]);
      if (p == tokens - 1 || own.cluster_of(own.order[p + 1]) != cluster) {
        own.size[cluster] = static_cast<int32_t>(p) + 1 - own.start[cluster];
      }
    });
    block.sync();
  }

  // More clusters than budget: ranks them by the sum of their norms, and joins all from the budget's last on.
  template <class Block>
  VITCOP_DEVICE void pool_clusters(const Block& block, const Row& own, int64_t row, int64_t budget) const {
    for_each(block, clusters, [&](int64_t c) {
      double sum = 0;
      for (int32_t p = own.start[c]; p < own.start[c] + own.size[c]; ++p) {
        sum += without_nan(norms[row * rows.tokens + own.order[p]], kInfinity);
      }
      // Finite, so that a label that no token has can rank after all; also where infinities of both signs make it NaN.
      const float finite = smaller(without_nan(static_cast<float>(sum), kInfinity), 3.402823466e+38f);
      own.cluster_keys[c] = ascending(own.size[c] > 0 ? finite : kInfinity);
    });
    block.sync();
    count_by_key(block, own.cluster_keys, clusters, own.room, own.remainder);
    for_each(block, clusters, [&](int64_t c) {
      own.cluster_group[c] = smaller(own.remainder[c], static_cast<int32_t>(budget - 1));
    });
  }

  // Equation 5, and what its floors leave over one at a time: by the largest remainder, the lower label on ties,
  // skipping clusters of which only one token is left to merge, in as many passes as it takes.
  template <class Block>
  VITCOP_DEVICE void share_out(const Block& block, Shared& shared, const Row& own, int64_t tokens,
                               int64_t elites) const {
    for_each(block, clusters, [&](int64_t c) {
      const int64_t share = own.size[c] * elites;
      own.quota[c] = static_cast<int32_t>(share / tokens);
      own.remainder[c] = static_cast<int32_t>(share % tokens);
      own.room[c] = larger(own.size[c] - 1 - own.quota[c], 0);
    });
    block.sync();
    int64_t left = elites - sum_over(block, shared.sums, clusters, [&](int64_t c) { return int64_t{own.quota[c]}; });
    if (left == 0) return;  // the same for all threads
    const auto given_by = [&](int64_t passes) {
      return sum_over(block, shared.sums, clusters, [&](int64_t c) { return smaller(int64_t{own.room[c]}, passes); });
    };
    int64_t passes = 0;
    for (int64_t most = tokens; passes < most;) {
      const int64_t middle = (passes + most + 1) / 2;
      if (given_by(middle) <= left) {
        passes = middle;
      } else {
        most = middle - 1;
      }
    }
    left -= given_by(passes);
    sum_each<int32_t>(
        block, clusters,
        [&](int64_t c, int64_t other) {
          const bool is_ahead = own.remainder[other] > own.remainder[c] ||
                                (own.remainder[other] == own.remainder[c] && other < c);
          return int32_t{is_ahead && own.room[other] > passes};
        },
        [&](int64_t c, int32_t place) {  // among the clusters that can take one more
          const int64_t extra = own.room[c] > passes && place < left;
          own.quota[c] += static_cast<int32_t>(smaller(int64_t{own.room[c]}, passes) + extra);
        });
  }

  // Places the outputs: an elite where it is, a group at the upper median of its tokens.
  template <class Block>
  VITCOP_DEVICE void choose_outputs(const Block& block, Shared& shared, const Row& own, int64_t row,
                                    int64_t tokens) const {
    const int64_t n = rows.tokens, most = rows.most;
    for_each(block, tokens, [&](int64_t i) {
      const int32_t cluster = own.cluster_of(i);
      const bool is_elite = own.place[i] - own.start[cluster] < own.quota[cluster];
      own.group[i] = is_elite ? -1 : own.cluster_group[cluster];
    });
    block.sync();
    // The order by norm has been used.
    const GroupScratch scratch = {own.keys, own.order, own.place, own.start, own.size};
    places_in_groups(block, own.group, tokens, clusters, scratch, shared.sort, own.before, own.group_size);
    const auto is_anchor = [&](int64_t i) { return own.group[i] >= 0 && own.before[i] == own.group_size[i] / 2; };
    for_each(block, tokens, [&](int64_t i) { own.stands[i] = own.group[i] < 0 || is_anchor(i); });
    block.sync();
    const int64_t kept = exclusive_scan(block, own.stands, tokens, shared.scan);

    int32_t* own_starts = starts + row * (most + 1);
    for_each(block, tokens, [&](int64_t i) {
      if (own.group[i] >= 0 && !is_anchor(i)) return;
      const int32_t place = own.stands[i];
      index[row * most + place] = i;
      is_merged[row * most + place] = is_anchor(i);
      own_starts[place] = own.group_size[i];
      if (is_anchor(i)) own.group_slot[own.group[i]] = place;
    });
    for_each(block, most - kept, [&](int64_t i) {
      index[row * most + kept + i] = n;
      is_merged[row * most + kept + i] = false;
      own_starts[kept + i] = 0;
    });
    for_each(block, 1, [&](int64_t) { own_starts[most] = 0; });
    block.sync();
    exclusive_scan(block, own_starts, most + 1, shared.scan);
    for_each(block, n, [&](int64_t i) {
      int64_t place = most;
      if (i < tokens) {
        place = own.group[i] < 0 ? own.stands[i] : own.group_slot[own.group[i]];
        members[row * n + own_starts[place] + own.before[i]] = static_cast<int32_t>(i);
      }
      slot[row * n + i] = place;
    });
    block.sync();
  }
};

// Equation 6: the mean of the hidden states that go into each output, [B, n, d] -> [B, budget, d]; one token alone comes
// back exactly, an output without tokens is 0. A unit is kColumns columns of one output.
template <class T>
struct MergeMeans {
  const T* hidden;
  int64_t stride_batch, stride_token;  // elements; a token's own are contiguous
  const int32_t* members;
  const int32_t* starts;
  int64_t batch, tokens, budget, width;
  T* merged;

  static constexpr int64_t kColumns = 1024;

  static constexpr int kThreads = 256;

  struct Shared {};

  VITCOP_BOTH int64_t chunks() const { return ceil_div(width, kColumns); }
  VITCOP_BOTH int64_t units() const { return batch * budget * chunks(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& /*shared*/, int64_t unit) const {
    const int64_t output = unit / chunks(), first = unit % chunks() * kColumns, row = output / budget;
    const int32_t* range = starts + row * (budget + 1) + output % budget;
    const int32_t* own = members + row * tokens;
    for_each(block, smaller(kColumns, width - first), [&](int64_t i) {
      double sum = 0;
      for (int32_t m = range[0]; m < range[1]; ++m) {
        sum += widen(hidden[row * stride_batch + own[m] * stride_token + first + i]);
      }
      merged[output * width + first + i] = narrow<T>(sum / larger(range[1] - range[0], 1));
    });
  }
};

}  // namespace vitcop
