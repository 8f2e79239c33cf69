// Visual Information Clustering (Algorithm 2), after and before the one matrix product that it needs.
//
// Center -> product (a library's) -> Diagonal -> Densities -> Parents -> Centers -> Adopt -> Labels. Sums and distances
// run in float64 and are rounded to float32 before they are compared: so tokens that tie in exact arithmetic tie here,
// for every batch, backend and launch.
#pragma once

#include <cmath>

#include "vitcop/order.h"
#include "vitcop/rows.h"

namespace vitcop {

// Squared distances below this share of the squared norms are rounding noise of the Gram matrix, and count as zero.
constexpr double kGramNoise = 1e-13;

// Squared distances between the tokens of a row, from their Gram matrix.
struct Distances {
  const double* gram;      // [B, n, n]
  const double* diagonal;  // [B, n]
  int64_t tokens;

  VITCOP_DEVICE double squared(int64_t row, int64_t i, int64_t j) const {
    const double norms = diagonal[row * tokens + i] + diagonal[row * tokens + j];
    const double value = norms - 2 * gram[(row * tokens + i) * tokens + j];
    return value <= kGramNoise * norms ? 0.0 : value;
  }

  VITCOP_DEVICE float operator()(int64_t row, int64_t i, int64_t j) const {
    return static_cast<float>(::sqrt(squared(row, i, j)));
  }
};

// Takes the mean off each row's features: [B, n, d] -> [B, n, d] float64, zero in padding. Distances stay what they are,
// and the Gram matrix cancels less. A unit is kLanes columns of a row.
template <class T>
struct Center {
  const T* features;  // contiguous
  int64_t batch, width;
  Rows rows;
  double* centered;

  static constexpr int kRowSlices = 8;

  static constexpr int kThreads = 256;

  struct Shared {
    double partial[kRowSlices * kLanes];
    double mean[kLanes];
  };

  VITCOP_BOTH int64_t chunks() const { return ceil_div(width, kLanes); }
  VITCOP_BOTH int64_t units() const { return batch * chunks(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t row = unit / chunks(), first = unit % chunks() * kLanes;
    const int64_t columns = smaller<int64_t>(kLanes, width - first), length = rows.length(row);
    const int64_t start = row * rows.tokens * width + first;
    for_each(block, kRowSlices * kLanes, [&](int64_t item) {
      const int64_t slice = item / kLanes, column = item % kLanes;
      if (column >= columns) return;
      double sum = 0;
      for (int64_t i = slice; i < length; i += kRowSlices) sum += widen(features[start + i * width + column]);
      shared.partial[item] = sum;
    });
    block.sync();
    for_each(block, columns, [&](int64_t column) {
      double sum = 0;
      for (int slice = 0; slice < kRowSlices; ++slice) sum += shared.partial[slice * kLanes + column];
      shared.mean[column] = sum / static_cast<double>(larger<int64_t>(length, 1));
    });
    block.sync();
    for_each(block, rows.tokens * kLanes, [&](int64_t item) {
      const int64_t i = item / kLanes, column = item % kLanes, at = start + i * width + column;
      if (column >= columns) return;
      centered[at] = i < length ? widen(features[at]) - shared.mean[column] : 0.0;
    });
    block.sync();
  }
};

// The diagonal of the Gram matrix, contiguous: [B, n, n] -> [B, n]. A unit is kSlices tokens of the batch.
struct Diagonal {
  const double* gram;
  int64_t batch, tokens;
  double* diagonal;

  static constexpr int kThreads = kSlices;

  struct Shared {};

  VITCOP_BOTH int64_t units() const { return ceil_div(batch * tokens, kSlices); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& /*shared*/, int64_t unit) const {
    const int64_t first = unit * kSlices;
    for_each(block, smaller<int64_t>(kSlices, batch * tokens - first),
             [&](int64_t i) { diagonal[first + i] = gram[(first + i) * tokens + (first + i) % tokens]; });
  }
};

// Equation 2: density [B, n]; 0 in padding. A unit is a tile of tokens of a row.
struct Densities {
  Distances distances;
  int64_t batch;
  Rows rows;
  double cutoff;  // d_c
  float* density;

  static constexpr int kThreads = kTile * kLanes;

  struct Shared {
    double partial[kTile * kLanes];
  };

  VITCOP_BOTH int64_t tiles() const { return ceil_div(rows.tokens, kTile); }
  VITCOP_BOTH int64_t units() const { return batch * tiles(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t row = unit / tiles(), first = unit % tiles() * kTile, length = rows.length(row);
    const double scale = -1.0 / (cutoff * cutoff);
    for_each(block, kTile * kLanes, [&](int64_t item) {
      const int64_t i = first + item / kLanes;
      double sum = 0;
      if (i < length) {
        for (int64_t j = item % kLanes; j < length; j += kLanes) {
          if (j != i) sum += ::exp(scale * distances.squared(row, i, j));
        }
      }
      shared.partial[item] = sum;
    });
    block.sync();
    fold_lanes(block, shared.partial, [](double a, double b) { return a + b; });
    for_each(block, smaller<int64_t>(kTile, rows.tokens - first), [&](int64_t i) {
      density[row * rows.tokens + first + i] = static_cast<float>(shared.partial[i * kLanes]);
    });
    block.sync();
  }
};

// The best candidate so far: the smaller distance, then the lower number. -1 where there is none.
struct Nearest {
  float distance;
  int32_t number;
};

VITCOP_DEVICE Nearest nearer(Nearest a, Nearest b) {
  const bool second = b.distance < a.distance || (b.distance == a.distance && b.number >= 0 && b.number < a.number);
  return second || a.number < 0 ? b : a;
}

// Equation 3: the nearest denser token within the spatial threshold, its distance, and the importance. A unit is a tile
// of tokens of a row.
struct Parents {
  Distances distances;
  const float* density;    // [B, n]
  const float* positions;  // [B, n, 2]
  int64_t batch;
  Rows rows;
  float threshold;    // on squared distances between positions, slack included
  int32_t* parent;    // [B, n], -1 where there is none
  float* distance;    // [B, n]
  float* importance;  // [B, n]

  static constexpr int kThreads = kTile * kLanes;

  struct Shared {
    Nearest partial[kTile * kLanes];
  };

  VITCOP_BOTH int64_t tiles() const { return ceil_div(rows.tokens, kTile); }
  VITCOP_BOTH int64_t units() const { return batch * tiles(); }

  // Whether j is denser than i, equal densities by the lower index. NaN is never denser, and nothing is denser than NaN.
  VITCOP_DEVICE static bool is_denser(float mine, int64_t i, float other, int64_t j) {
    return other > mine || (other == mine && j < i);
  }

  VITCOP_DEVICE bool is_near(int64_t row, int64_t i, int64_t j) const {
    const float* a = positions + (row * rows.tokens + i) * 2;
    const float* b = positions + (row * rows.tokens + j) * 2;
    const float down = a[0] - b[0], across = a[1] - b[1];
    return down * down + across * across <= threshold;
  }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t row = unit / tiles(), first = unit % tiles() * kTile, length = rows.length(row);
    const float* own = density + row * rows.tokens;
    for_each(block, kTile * kLanes, [&](int64_t item) {
      const int64_t i = first + item / kLanes;
      Nearest best = {kInfinity, -1};
      if (i < length) {
        for (int64_t j = item % kLanes; j < length; j += kLanes) {
          if (!is_denser(own[i], i, own[j], j) || !is_near(row, i, j)) continue;
          const float candidate = distances(row, i, j);
          if (candidate < best.distance) best = {candidate, static_cast<int32_t>(j)};
        }
      }
      shared.partial[item] = best;
    });
    block.sync();
    fold_lanes(block, shared.partial, [](Nearest a, Nearest b) { return nearer(a, b); });
    for_each(block, smaller<int64_t>(kTile, rows.tokens - first), [&](int64_t i) {
      const Nearest best = shared.partial[i * kLanes];
      const int64_t at = row * rows.tokens + first + i;
      const bool is_valid = first + i < length;
      parent[at] = best.number;
      distance[at] = is_valid ? best.distance : 0.0f;
      // Not a product where nothing is denser: 0 * inf is NaN.
      importance[at] = !is_valid ? 0.0f : best.number < 0 ? kInfinity : density[at] * best.distance;
    });
    block.sync();
  }
};

// The centers: the tokens of largest importance, then density, then the lower index. A unit is a tile of tokens of a row.
struct Centers {
  const float* density;
  const float* importance;
  int64_t batch;
  Rows rows;         // `most` is the number of centers
  int64_t* centers;  // [B, c], n past a row's own
  int32_t* label;    // [B, n], the center's number or -1

  static constexpr int kThreads = kTile * kLanes;

  struct Shared {
    int32_t partial[kTile * kLanes];
  };

  VITCOP_BOTH int64_t tiles() const { return ceil_div(rows.tokens, kTile); }
  VITCOP_BOTH int64_t units() const { return batch * tiles(); }

  VITCOP_DEVICE uint64_t key(int64_t at) const {
    const uint64_t high = descending(without_nan(importance[at], -kInfinity));
    return high << 32 | descending(without_nan(density[at], -kInfinity));
  }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t n = rows.tokens, row = unit / tiles(), first = unit % tiles() * kTile;
    const int64_t length = rows.length(row), count = rows.count(row);
    for_each(block, kTile * kLanes, [&](int64_t item) {
      const int64_t i = first + item / kLanes;
      int32_t before = 0;
      if (i < length) {
        const uint64_t mine = key(row * n + i);
        for (int64_t j = item % kLanes; j < length; j += kLanes) before += comes_before(key(row * n + j), j, mine, i);
      }
      shared.partial[item] = before;
    });
    block.sync();
    fold_lanes(block, shared.partial, [](int32_t a, int32_t b) { return a + b; });
    for_each(block, smaller<int64_t>(kTile, n - first), [&](int64_t i) {
      const int32_t place = shared.partial[i * kLanes];
      const bool is_center = first + i < length && place < count;
      label[row * n + first + i] = is_center ? place : -1;
      if (is_center) centers[row * rows.most + place] = first + i;
    });
    if (first == 0) {
      for_each(block, rows.most - count, [&](int64_t i) { centers[row * rows.most + count + i] = n; });
    }
    block.sync();
  }
};

// Gives tokens that are no center and have no parent the label of the nearest center. A unit is a tile of a row.
struct Adopt {
  Distances distances;
  const int64_t* centers;
  const int32_t* parent;
  int64_t batch;
  Rows rows;
  int32_t* label;  // [B, n], read and written

  static constexpr int kThreads = kTile * kLanes;

  struct Shared {
    Nearest partial[kTile * kLanes];
  };

  VITCOP_BOTH int64_t tiles() const { return ceil_div(rows.tokens, kTile); }
  VITCOP_BOTH int64_t units() const { return batch * tiles(); }

  VITCOP_DEVICE bool is_orphan(int64_t row, int64_t i) const {
    return i < rows.length(row) && label[row * rows.tokens + i] < 0 && parent[row * rows.tokens + i] < 0;
  }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t row = unit / tiles(), first = unit % tiles() * kTile, count = rows.count(row);
    for_each(block, kTile * kLanes, [&](int64_t item) {
      const int64_t i = first + item / kLanes;
      Nearest best = {kInfinity, -1};
      if (is_orphan(row, i)) {
        for (int64_t k = item % kLanes; k < count; k += kLanes) {
          const float candidate = distances(row, i, centers[row * rows.most + k]);
          if (candidate < best.distance) best = {candidate, static_cast<int32_t>(k)};
        }
      }
      shared.partial[item] = best;
    });
    block.sync();
    fold_lanes(block, shared.partial, [](Nearest a, Nearest b) { return nearer(a, b); });
    for_each(block, kTile, [&](int64_t i) {
      // Infinitely far from every center: the first one.
      if (is_orphan(row, first + i)) {
        label[row * rows.tokens + first + i] = larger(shared.partial[i * kLanes].number, 0);
      }
    });
    block.sync();
  }
};

// Every other token takes the label that its chain of parents ends in. The chains halve in every round. A unit is a row.
struct Labels {
  const int32_t* parent;
  const int32_t* label;  // of the ends of chains; -1 elsewhere
  int64_t batch;
  Rows rows;
  int64_t* labels;    // [B, n], -1 in padding
  int32_t* pointers;  // workspace, [B, 2, n]

  static constexpr int kThreads = 1024;

  struct Shared {};

  VITCOP_BOTH int64_t units() const { return batch; }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& /*shared*/, int64_t row) const {
    const int64_t n = rows.tokens, length = rows.length(row);
    const int32_t* own_label = label + row * n;
    int32_t* from = pointers + row * 2 * n;
    int32_t* to = from + n;
    for_each(block, length, [&](int64_t i) {
      const int32_t next = parent[row * n + i];
      from[i] = own_label[i] >= 0 || next < 0 ? static_cast<int32_t>(i) : next;
    });
    block.sync();
    for (int64_t reach = 1; reach < length; reach *= 2) {
      for_each(block, length, [&](int64_t i) { to[i] = from[from[i]]; });
      block.sync();
      int32_t* swap = from;
      from = to;
      to = swap;
    }
    for_each(block, n, [&](int64_t i) { labels[row * n + i] = i < length ? own_label[from[i]] : -1; });
    block.sync();
  }
};

}  // namespace vitcop
