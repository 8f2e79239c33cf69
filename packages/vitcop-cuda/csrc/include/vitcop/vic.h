// Visual Information Clustering (Algorithm 2), after and before the one matrix product that it needs.
//
// Center -> product (a library's) -> Diagonal -> Densities -> Parents -> Centers -> Adopt -> Labels; for up to kMostInOne
// tokens everything after the product is one kernel, Cluster, out of the same parts and with the same bits. Sums and
// distances run in float64 and are rounded to float32 before they are compared: so tokens that tie in exact arithmetic tie
// here, for every batch, backend and launch.
//
// The parts take kRows tokens side by side, with kLanes threads each.
#pragma once

#include <cmath>

#include "vitcop/cutoff.h"
#include "vitcop/order.h"
#include "vitcop/rows.h"

namespace vitcop {

// Squared distances below this share of the squared norms are rounding noise of the Gram matrix, and count as zero.
constexpr double kGramNoise = 1e-13;

// Distances between the tokens of a row, from their Gram matrix. A library need not give a matrix that is symmetric to the
// last bit; the mean of both halves is.
struct Distances {
  static constexpr bool kAreStored = false;
  const double* gram;      // [B, n, n]
  const double* diagonal;  // [B, n], or null: read from the matrix
  int64_t tokens;

  VITCOP_DEVICE double norm(int64_t row, int64_t i) const {
    const int64_t at = row * tokens + i;
    return diagonal == nullptr ? gram[at * tokens + i] : diagonal[at];
  }

  VITCOP_DEVICE double squared(int64_t row, int64_t i, int64_t j) const {
    const double norms = norm(row, i) + norm(row, j);
    const double value = norms - (gram[(row * tokens + i) * tokens + j] + gram[(row * tokens + j) * tokens + i]);
    return value <= kGramNoise * norms ? 0.0 : value;
  }

  VITCOP_DEVICE float operator()(int64_t row, int64_t i, int64_t j) const {
    return static_cast<float>(::sqrt(squared(row, i, j)));
  }
};

// Distances that were stored, [B, n, n].
struct StoredDistances {
  static constexpr bool kAreStored = true;
  const float* values;
  int64_t tokens;

  VITCOP_DEVICE float operator()(int64_t row, int64_t i, int64_t j) const {
    return values[(row * tokens + i) * tokens + j];
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
  int32_t* finished;  // [B], set to 0 for the tiles of Cluster to count in; null where that does not follow

  static constexpr int kRowSlices = 8;

  static constexpr int kThreads = 256;

  struct Shared {
    double partial[kRowSlices * kLanes];
    double mean[kLanes];
  };

  VITCOP_BOTH int64_t chunks() const { return larger<int64_t>(ceil_div(width, kLanes), 1); }
  VITCOP_BOTH int64_t units() const { return batch * chunks(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t row = unit / chunks(), first = unit % chunks() * kLanes;
    const int64_t columns = smaller<int64_t>(kLanes, width - first), length = rows.length(row);
    const int64_t start = row * rows.tokens * width + first;
    if (first == 0 && finished != nullptr) for_each(block, 1, [&](int64_t) { finished[row] = 0; });
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
template <int kRows = kTile>
struct Densities {
  Distances distances;
  int64_t batch;
  Rows rows;
  Cutoff cutoff;
  float* density;
  float* stored;  // [B, n, n], where the distances go too; or null

  static constexpr int kThreads = kRows * kLanes;

  struct Shared {
    double partial[kRows * kLanes];
  };

  VITCOP_BOTH int64_t tiles() const { return ceil_div(rows.tokens, kRows); }
  VITCOP_BOTH int64_t units() const { return batch * tiles(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t row = unit / tiles(), first = unit % tiles() * kRows, length = rows.length(row);
    const double scale = cutoff.scale(row);
    const auto sum_of = [&](int64_t r, int64_t lane) {
      const int64_t i = first + r;
      double sum = 0;
      for (int64_t j = lane; i < length && j < length; j += kLanes) {
        const double squared = distances.squared(row, i, j);
        if (j != i) sum += ::exp(scale * squared);
        if (stored != nullptr) stored[(row * rows.tokens + i) * rows.tokens + j] = static_cast<float>(::sqrt(squared));
      }
      return sum;
    };
    fold_rows<kRows, kLanes>(
        block, shared.partial, sum_of, [](double a, double b) { return a + b; },
        [&](int64_t r, double sum) {
          if (first + r < rows.tokens) density[row * rows.tokens + first + r] = static_cast<float>(sum);
        });
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

// Adds a candidate that comes after all others by number.
VITCOP_DEVICE void consider(Nearest& best, float distance, int64_t number) {
  if (distance < best.distance) best = {distance, static_cast<int32_t>(number)};
}

// Equation 3: the nearest denser token within the spatial threshold, its distance, and the importance. A unit is a tile
// of tokens of a row.
template <class Measure = Distances, int kRows = kTile>
struct Parents {
  Measure distances;
  const float* density;    // [B, n]
  const float* positions;  // [B, n, 2]
  int64_t batch;
  Rows rows;
  float threshold;    // on squared distances between positions, slack included
  int32_t* parent;    // [B, n], -1 where there is none
  float* distance;    // [B, n]
  float* importance;  // [B, n]

  static constexpr int kThreads = kRows * kLanes;

  struct Shared {
    Nearest partial[kRows * kLanes];
  };

  VITCOP_BOTH int64_t tiles() const { return ceil_div(rows.tokens, kRows); }
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
    const int64_t row = unit / tiles(), first = unit % tiles() * kRows, length = rows.length(row);
    const float* own = density + row * rows.tokens;
    const auto nearest = [&](int64_t r, int64_t lane) {
      const int64_t i = first + r;
      Nearest best = {kInfinity, -1};
      VITCOP_UNROLL
      for (int64_t j = lane; i < length && j < length; j += kLanes) {
        if constexpr (Measure::kAreStored) {  // a load, which need not wait for the answer
          const float candidate = distances(row, i, j);
          const bool is_parent = is_denser(own[i], i, own[j], j) & is_near(row, i, j);
          consider(best, is_parent ? candidate : kInfinity, j);
        } else if (is_denser(own[i], i, own[j], j) && is_near(row, i, j)) {
          consider(best, distances(row, i, j), j);
        }
      }
      return best;
    };
    fold_rows<kRows, kLanes>(
        block, shared.partial, nearest, [](Nearest a, Nearest b) { return nearer(a, b); },
        [&](int64_t r, Nearest best) {
          const int64_t at = row * rows.tokens + first + r;
          if (first + r >= rows.tokens) return;
          const bool is_valid = first + r < length;
          parent[at] = best.number;
          distance[at] = is_valid ? best.distance : 0.0f;
          // Not a product where nothing is denser: 0 * inf is NaN.
          importance[at] = !is_valid ? 0.0f : best.number < 0 ? kInfinity : density[at] * best.distance;
        });
  }
};

// The centers: the tokens of largest importance, then density, then the lower index. A unit is a tile of tokens of a row.
template <int kRows = kTile>
struct Centers {
  const float* density;
  const float* importance;
  int64_t batch;
  Rows rows;         // `most` is the number of centers
  int64_t* centers;  // [B, c], n past a row's own
  int32_t* label;    // [B, n], the center's number or -1

  static constexpr int kThreads = kRows * kLanes;

  struct Shared {
    int32_t partial[kRows * kLanes];
  };

  VITCOP_BOTH int64_t tiles() const { return ceil_div(rows.tokens, kRows); }
  VITCOP_BOTH int64_t units() const { return batch * tiles(); }

  VITCOP_DEVICE uint64_t key(int64_t at) const {
    const uint64_t high = descending(without_nan(importance[at], -kInfinity));
    return high << 32 | descending(without_nan(density[at], -kInfinity));
  }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t n = rows.tokens, row = unit / tiles(), first = unit % tiles() * kRows;
    const int64_t length = rows.length(row), count = rows.count(row);
    const auto before_of = [&](int64_t r, int64_t lane) {
      const int64_t i = first + r;
      int32_t before = 0;
      const uint64_t mine = i < length ? key(row * n + i) : 0;
      for (int64_t j = lane; i < length && j < length; j += kLanes) before += comes_before(key(row * n + j), j, mine, i);
      return before;
    };
    fold_rows<kRows, kLanes>(
        block, shared.partial, before_of, [](int32_t a, int32_t b) { return a + b; },
        [&](int64_t r, int32_t place) {
          if (first + r >= n) return;
          const bool is_center = first + r < length && place < count;
          label[row * n + first + r] = is_center ? place : -1;
          if (is_center) centers[row * rows.most + place] = first + r;
        });
    if (first == 0) {
      for_each(block, rows.most - count, [&](int64_t i) { centers[row * rows.most + count + i] = n; });
    }
    block.sync();
  }
};

// Gives tokens that are no center and have no parent the label of the nearest center. A unit is a tile of a row.
template <class Measure = Distances, int kRows = kTile>
struct Adopt {
  Measure distances;
  const int64_t* centers;
  const int32_t* parent;
  int64_t batch;
  Rows rows;
  int32_t* label;  // [B, n], read and written

  static constexpr int kThreads = kRows * kLanes;

  struct Shared {
    Nearest partial[kRows * kLanes];
  };

  VITCOP_BOTH int64_t tiles() const { return ceil_div(rows.tokens, kRows); }
  VITCOP_BOTH int64_t units() const { return batch * tiles(); }

  VITCOP_DEVICE bool is_orphan(int64_t row, int64_t i) const {
    return i < rows.length(row) && label[row * rows.tokens + i] < 0 && parent[row * rows.tokens + i] < 0;
  }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t row = unit / tiles(), first = unit % tiles() * kRows, count = rows.count(row);
    const auto nearest = [&](int64_t r, int64_t lane) {
      Nearest best = {kInfinity, -1};
      if (!is_orphan(row, first + r)) return best;
      for (int64_t k = lane; k < count; k += kLanes) {
        consider(best, distances(row, first + r, centers[row * rows.most + k]), k);
      }
      return best;
    };
    fold_rows<kRows, kLanes>(
        block, shared.partial, nearest, [](Nearest a, Nearest b) { return nearer(a, b); },
        [&](int64_t r, Nearest best) {
          // Infinitely far from every center: the first one.
          if (is_orphan(row, first + r)) label[row * rows.tokens + first + r] = larger(best.number, 0);
        });
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
