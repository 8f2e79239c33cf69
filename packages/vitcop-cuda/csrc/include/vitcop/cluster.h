// Clustering after the matrix product in one kernel, for rows of few tokens.
#pragma once

#include "vitcop/vic.h"

namespace vitcop {

// The most tokens that one block goes over alone, and that one kernel clusters.
constexpr int64_t kMostInOne = 256;

// What Densities, Parents, Centers, Adopt and Labels do. A unit is a tile of tokens of a row, of which it finds distances
// and densities, the one part that is mostly arithmetic. The block that does so last, of those that share a row, does the
// rest for the row.
struct Cluster {
  static constexpr int kRows = 32;

  Densities<kRows> densities;  // which stores the distances for the others
  Parents<StoredDistances, kRows> parents;
  Centers<kRows> centers;
  Adopt<StoredDistances, kRows> adopt;
  Labels labels;
  int32_t* finished;  // [B], the tiles of each row that are done: 0 before

  static constexpr int kThreads = kRows * kLanes;

  struct Shared {
    int32_t arrived;
    union {
      typename Densities<kRows>::Shared densities;
      typename Parents<StoredDistances, kRows>::Shared parents;
      typename Centers<kRows>::Shared centers;
      typename Adopt<StoredDistances, kRows>::Shared adopt;
      Labels::Shared labels;
    };
  };

  VITCOP_BOTH int64_t units() const { return densities.units(); }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t unit) const {
    const int64_t tiles = densities.tiles(), row = unit / tiles;
    densities(block, shared.densities, unit);
    if (!is_last_block(block, shared.arrived, finished + row, tiles)) return;  // the same for all threads
    for (int64_t tile = 0; tile < tiles; ++tile) parents(block, shared.parents, row * tiles + tile);
    for (int64_t tile = 0; tile < tiles; ++tile) centers(block, shared.centers, row * tiles + tile);
    for (int64_t tile = 0; tile < tiles; ++tile) adopt(block, shared.adopt, row * tiles + tile);
    labels(block, shared.labels, row);
  }
};

// The arrays of everything after the product, and the kernels over them.
struct AfterProduct {
  const double* gram;      // [B, n, n]
  const float* positions;  // [B, n, 2]
  int64_t batch;
  Rows rows;  // `most` is the number of centers
  Cutoff cutoff;
  float threshold;
  // Results.
  float *density, *distance, *importance;  // [B, n]
  int64_t* centers;                        // [B, c]
  int64_t* labels;                         // [B, n]
  // Workspace of both ways, then of the way in one kernel, then of the other.
  int32_t *parent, *label;  // [B, n]
  int32_t* pointers;        // [B, 2, n]
  float* stored;            // [B, n, n]
  int32_t* finished;        // [B], zeros
  double* diagonal;         // [B, n]

  Cluster in_one() const {
    const StoredDistances measured = {stored, rows.tokens};
    return {{{gram, nullptr, rows.tokens}, batch, rows, cutoff, density, stored},
            parents<StoredDistances, Cluster::kRows>(measured),
            {density, importance, batch, rows, centers, label},
            {measured, centers, parent, batch, rows, label},
            follow(),
            finished};
  }

  // For rows of any number of tokens.
  template <class Launch>
  void in_parts(const Launch& launch) const {
    const Distances distances = {gram, diagonal, rows.tokens};
    launch(Diagonal{gram, batch, rows.tokens, diagonal});
    launch(Densities<>{distances, batch, rows, cutoff, density, nullptr});
    launch(parents<Distances, kTile>(distances));
    launch(Centers<>{density, importance, batch, rows, centers, label});
    launch(Adopt<>{distances, centers, parent, batch, rows, label});
    launch(follow());
  }

 private:
  template <class Measure, int kRows>
  Parents<Measure, kRows> parents(const Measure& distances) const {
    return {distances, density, positions, batch, rows, threshold, parent, distance, importance};
  }

  Labels follow() const { return {parent, label, batch, rows, labels, pointers}; }
};

}  // namespace vitcop
