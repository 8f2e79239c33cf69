// Runs every kernel of include/vitcop on random data, without torch, for ThreadSanitizer and AddressSanitizer: the
// stand-in for compute-sanitizer on a machine without a GPU. Blocks run side by side here, and the threads of each wait
// at real barriers, so two accesses that no barrier separates are seen, within a block and between blocks, in shared
// memory and in global memory. Some blocks have warps, as a GPU's do: their folds, scans and sorts are the ones that a GPU
// runs. The results must be the same bits as with one block of one thread.
//
//   g++ -std=c++20 -O1 -g -fsanitize=thread -ffp-contract=off -I csrc -I csrc/include race_check.cpp -pthread
#include <cstdio>
#include <random>

#include "host/warp_block.h"
#include "vitcop/cls_saliency.h"
#include "vitcop/cluster.h"
#include "vitcop/co_prune.h"
#include "vitcop/gather.h"
#include "vitcop/key_norm.h"
#include "vitcop/received_attention.h"
#include "vitcop/top_tokens.h"

namespace {

using vitcop::Rows;

struct Grid {
  int64_t blocks, threads;
  bool has_warps;
};

template <class Kernel>
void run(const Kernel& kernel, const Grid& grid) {
  std::vector<std::unique_ptr<typename Kernel::Shared>> shared;
  std::vector<std::unique_ptr<std::barrier<>>> barriers;
  std::vector<std::unique_ptr<vitcop::host::Warps>> warps;
  std::vector<std::thread> teams;
  for (int64_t block = 0; block < grid.blocks; ++block) {
    shared.push_back(std::make_unique_for_overwrite<typename Kernel::Shared>());
    barriers.push_back(std::make_unique<std::barrier<>>(grid.threads));
    warps.push_back(std::make_unique<vitcop::host::Warps>(grid.threads));
  }
  for (int64_t block = 0; block < grid.blocks; ++block) {
    for (int64_t thread = 0; thread < grid.threads; ++thread) {
      teams.emplace_back([&, block, thread] {
        const auto go = [&](const auto& own) {
          for (int64_t unit = block; unit < kernel.units(); unit += grid.blocks) {
            kernel(own, *shared[block], unit);
            own.sync();
          }
        };
        if (grid.has_warps) {
          go(vitcop::host::WarpBlock(thread, grid.threads, *barriers[block], *warps[block]));
        } else {
          go(vitcop::host::ThreadedBlock(thread, grid.threads, *barriers[block]));
        }
      });
    }
  }
  for (std::thread& member : teams) member.join();
}

struct Sizes {
  int64_t batch, tokens, width, centers, budget;
};

template <class T>
std::vector<T> random_numbers(int64_t count, int seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<T> numbers(count);
  for (T& number : numbers) number = vitcop::narrow<T>(std::round(normal(generator)));  // whole numbers: many ties
  return numbers;
}

// All results as bytes, to be compared between grids. Poisoned first: what nobody writes shows as a difference.
struct Results {
  std::vector<std::vector<char>> arrays;
  bool ways_agree = true;  // clustering in one kernel and in several

  template <class T>
  T* add(int64_t count, int poison) {
    arrays.emplace_back(count * sizeof(T), static_cast<char>(poison));
    return reinterpret_cast<T*>(arrays.back().data());
  }
};

template <class T>
void cluster(const Sizes& s, const Rows& given, const Grid& grid, int poison, Results& results) {
  const int64_t n = s.tokens;
  const std::vector<T> features = random_numbers<T>(s.batch * n * s.width, 1);
  std::vector<float> positions = random_numbers<float>(s.batch * n * 2, 2);
  for (float& position : positions) position /= 9.0f;
  Rows rows = given;
  rows.most = s.centers;
  auto* centered = results.add<double>(s.batch * n * s.width, poison);
  std::vector<int32_t> finished(s.batch, poison);
  run(vitcop::Center<T>{features.data(), s.batch, s.width, rows, centered, finished.data()}, grid);
  std::vector<double> gram(s.batch * n * n), diagonal(s.batch * n);
  for (int64_t i = 0; i < s.batch * n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const double* mine = centered + i * s.width;
      const double* other = centered + (i / n * n + j) * s.width;
      for (int64_t x = 0; x < s.width; ++x) gram[i * n + j] += mine[x] * other[x];
    }
  }
  const size_t first = results.arrays.size();
  for (const bool in_one : {true, false}) {
    auto* density = results.add<float>(s.batch * n, poison);
    auto* distance = results.add<float>(s.batch * n, poison);
    auto* importance = results.add<float>(s.batch * n, poison);
    auto* parent = results.add<int32_t>(s.batch * n, poison);
    auto* label = results.add<int32_t>(s.batch * n, poison);
    auto* centers = results.add<int64_t>(s.batch * s.centers, poison);
    auto* labels = results.add<int64_t>(s.batch * n, poison);
    std::vector<int32_t> pointers(s.batch * n * 2, poison);
    std::vector<float> stored(s.batch * n * n);
    const vitcop::AfterProduct rest = {gram.data(), positions.data(), s.batch, rows, {8.0, nullptr}, 0.2f, density, distance,
                                       importance, centers, labels, parent, label, pointers.data(), stored.data(),
                                       finished.data(), diagonal.data()};
    if (in_one) {
      run(rest.in_one(), grid);
    } else {
      rest.in_parts([&](const auto& kernel) { run(kernel, grid); });
    }
  }
  const size_t each = (results.arrays.size() - first) / 2;
  for (size_t i = first; i < first + each; ++i) results.ways_agree &= results.arrays[i] == results.arrays[i + each];
}

template <class T>
void prune(const Sizes& s, const Rows& given, const Grid& grid, int poison, Results& results) {
  const int64_t n = s.tokens;
  const std::vector<T> hidden = random_numbers<T>(s.batch * n * s.width, 3);
  const std::vector<float> norms = random_numbers<float>(s.batch * n, 4);
  std::vector<int64_t> labels(s.batch * n);
  for (int64_t i = 0; i < s.batch * n; ++i) labels[i] = static_cast<int64_t>(norms[i] * norms[i]) % s.centers;
  Rows rows = given;
  rows.most = s.budget;
  auto* index = results.add<int64_t>(s.batch * s.budget, poison);
  auto* is_merged = results.add<bool>(s.batch * s.budget, poison);
  auto* slot = results.add<int64_t>(s.batch * n, poison);
  auto* merged = results.add<T>(s.batch * s.budget * s.width, poison);
  std::vector<int32_t> members(s.batch * n), starts(s.batch * (s.budget + 1));
  std::vector<int64_t> workspace(s.batch * vitcop::Assign::workspace_size(n, s.centers) / 2 + 1);
  run(vitcop::Assign{labels.data(), norms.data(), s.batch, s.centers, rows, index, is_merged, slot, members.data(),
                     starts.data(), reinterpret_cast<int32_t*>(workspace.data())},
      grid);
  run(vitcop::MergeMeans<T>{hidden.data(), n * s.width, s.width, members.data(), starts.data(), s.batch, n, s.budget,
                            s.width, merged},
      grid);
  auto* gathered = results.add<T>(s.batch * s.budget * s.width, poison);
  vitcop::Gather gather = {};
  const int64_t bytes = s.width * static_cast<int64_t>(sizeof(T));
  gather.parts[gather.count++] = {reinterpret_cast<const char*>(hidden.data()), reinterpret_cast<char*>(gathered),
                                  bytes, n * bytes, bytes, false};
  gather.index = index;
  gather.batch = s.batch;
  gather.places = s.budget;
  gather.tokens = n;
  run(gather, grid);
}

template <class T>
void receive(const Sizes& s, const Rows& rows, const Grid& grid, int poison, Results& results) {
  constexpr int64_t kHeads = 2;
  const int64_t n = s.tokens, w = s.width, row = kHeads * n * w;
  const std::vector<T> queries = random_numbers<T>(s.batch * row, 8), keys = random_numbers<T>(s.batch * row, 9);
  const vitcop::ScoreTile<T> tile = {
      {queries.data(), w, row, n * w, w, 1}, {keys.data(), w, row, n * w, w, 1}, 0.1f, s.batch, kHeads, rows};
  std::vector<float> tops(s.batch * kHeads * n);
  std::vector<double> sums(s.batch * kHeads * n), received(s.batch * kHeads * n);
  auto* mean = results.add<float>(s.batch * n, poison);
  run(vitcop::QuerySums<T>{tile, tops.data(), sums.data()}, grid);
  run(vitcop::KeySums<T>{tile, tops.data(), sums.data(), received.data()}, grid);
  run(vitcop::MeanReceived{received.data(), s.batch, kHeads, rows, mean}, grid);
}

template <class T>
void score(const Sizes& s, const Grid& grid, int poison, Results& results) {
  constexpr int64_t kHeads = 3;
  const int64_t n = s.tokens, w = s.width;
  const std::vector<T> keys = random_numbers<T>(s.batch * kHeads * n * w, 5);
  const std::vector<T> query = random_numbers<T>(s.batch * kHeads * w, 6);
  auto* norms = results.add<float>(s.batch * n, poison);
  run(vitcop::KeyNorms<T>{keys.data(), s.batch, kHeads, n, w, kHeads * n * w, n * w, w, 1, norms}, grid);
  auto* scores = results.add<float>(s.batch * kHeads * n, poison);
  auto* saliency = results.add<float>(s.batch * n, poison);
  run(vitcop::HeadScores<T>{query.data(), keys.data(), 0.1f, s.batch, kHeads, n, w, kHeads * w, w, 1, kHeads * n * w,
                            n * w, w, 1, scores},
      grid);
  run(vitcop::SumHeads{scores, s.batch, kHeads, n, saliency}, grid);
}

void choose(const Sizes& s, const Rows& given, const Grid& grid, int poison, Results& results) {
  const int64_t n = s.tokens;
  const std::vector<float> saliency = random_numbers<float>(s.batch * n, 7);
  Rows rows = given;
  rows.most = s.centers;
  std::vector<uint32_t> sort_keys(s.batch * n);
  std::vector<int32_t> order(s.batch * n), place(s.batch * n);
  for (const bool smallest : {false, true}) {
    auto* chosen = results.add<int64_t>(s.batch * s.centers, poison);
    run(vitcop::TopTokens<float>{saliency.data(), n, 1, s.batch, rows, smallest, chosen, sort_keys.data(), order.data(),
                                 place.data()},
        grid);
  }
}

template <class T>
Results all(const Sizes& sizes, const Rows& rows, const Grid& grid, int poison) {
  Results results;
  results.arrays.reserve(64);  // pointers into it are handed out
  if (sizes.tokens <= vitcop::kMostInOne) {
    cluster<T>(sizes, rows, grid, poison, results);
    score<T>(sizes, grid, poison, results);
    receive<T>(sizes, rows, grid, poison, results);
  }
  prune<T>(sizes, rows, grid, poison, results);
  choose(sizes, rows, grid, poison, results);
  return results;
}

template <class T>
bool agree(const char* dtype, const Sizes& sizes, const std::vector<Grid>& grids) {
  std::vector<int64_t> lengths, counts;
  for (int64_t row = 0; row < sizes.batch; ++row) {
    lengths.push_back(row == 0 ? sizes.tokens : sizes.tokens * row / sizes.batch);
    counts.push_back(row == 1 ? 0 : sizes.centers);
  }
  bool same = true;
  for (const bool is_ragged : {false, true}) {
    if (!is_ragged && grids[0].has_warps) continue;  // slow, and a ragged batch has a whole row too
    const Rows rows{is_ragged ? lengths.data() : nullptr, is_ragged ? counts.data() : nullptr, sizes.tokens, 0};
    const Results expected = all<T>(sizes, rows, {1, 1, false}, 0x00);
    for (const Grid& grid : grids) {
      const Results found = all<T>(sizes, rows, grid, 0x55);
      if (!found.ways_agree) {
        std::printf("%s: clustering in one kernel differs from clustering in several\n", dtype);
        same = false;
      }
      for (size_t i = 0; i < expected.arrays.size(); ++i) {
        if (found.arrays[i] == expected.arrays[i]) continue;
        std::printf("%s, %s, %lld tokens: result %zu differs with %lld blocks of %lld threads%s\n", dtype,
                    is_ragged ? "ragged" : "even", static_cast<long long>(sizes.tokens), i,
                    static_cast<long long>(grid.blocks), static_cast<long long>(grid.threads),
                    grid.has_warps ? " in warps" : "");
        same = false;
      }
    }
  }
  return same;
}

}  // namespace

int main() {
  bool same = true;
  const std::vector<Grid> plain = {{2, 3, false}, {3, 2, false}, {1, 4, false}};
  for (const Sizes& sizes : {Sizes{3, 29, 5, 6, 9}, Sizes{2, 70, 33, 11, 5}, Sizes{2, 1, 3, 1, 1}}) {
    same &= agree<float>("float32", sizes, plain);
    same &= agree<vitcop::Half>("float16", sizes, plain);
    same &= agree<vitcop::BFloat16>("bfloat16", sizes, plain);
    same &= agree<double>("float64", sizes, plain);
  }
  // The widths are whole packs here, and the last has more tokens than a block puts in order by counting.
  same &= agree<vitcop::BFloat16>("bfloat16", Sizes{2, 33, 16, 7, 5}, {{2, 64, true}});
  same &= agree<float>("float32", Sizes{1, 300, 4, 40, 90}, {{1, 32, true}});
  std::puts(same ? "the same bits for every launch" : "FAILED");
  return same ? 0 : 1;
}
