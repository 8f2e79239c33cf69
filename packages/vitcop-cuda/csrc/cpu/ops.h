// The operators on the CPU.
//
// What a row decides by integers alone runs on the lines of include/vitcop, in one block of one thread with a sort of its
// own; what reads or writes whole features is written for the CPU here.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <tuple>
#include <vector>

#include "glue/arguments.h"
#include "host/serial_block.h"
#include "vitcop/order.h"

namespace vitcop::cpu {

using glue::Dtype;
using glue::OptionalTensor;
using glue::Tensor;

Tensor cls_saliency(const Tensor& query_cls, const Tensor& keys, double scale);
Tensor received_attention(const Tensor& queries, const Tensor& keys, double scale, const OptionalTensor& lengths);
Tensor top_tokens(const Tensor& saliency, int64_t k, bool smallest, const OptionalTensor& lengths,
                  const OptionalTensor& counts);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> vic(const Tensor& features, const Tensor& positions,
                                                       int64_t num_centers, double cutoff_distance,
                                                       double spatial_threshold, const OptionalTensor& lengths,
                                                       const OptionalTensor& counts, const OptionalTensor& cutoffs);
Tensor key_norm(const Tensor& keys);
std::tuple<Tensor, Tensor, Tensor, Tensor> co_prune(const Tensor& hidden, const Tensor& labels, const Tensor& key_norm,
                                                    int64_t budget, int64_t num_clusters, const OptionalTensor& lengths,
                                                    const OptionalTensor& counts);
std::vector<Tensor> gather_tokens(const std::vector<Tensor>& tensors, const Tensor& index);

// A block of one thread that sorts, where many threads would count.
struct Block : host::SerialBlock {};

template <class Key>
void count_by_key(const Block& /*block*/, const Key* keys, int64_t count, int32_t* order, int32_t* place) {
  for (int64_t i = 0; i < count; ++i) order[i] = static_cast<int32_t>(i);
  std::sort(order, order + count, [&](int32_t a, int32_t b) { return comes_before(keys[a], a, keys[b], b); });
  for (int64_t i = 0; i < count; ++i) place[order[i]] = static_cast<int32_t>(i);
}

inline void places_in_groups(const Block& /*block*/, const int32_t* group, int64_t count, int64_t /*groups*/,
                             const GroupScratch& at, SortScratch& /*scratch*/, int32_t* place, int32_t* size) {
  int32_t* found = at.end;
  for (int64_t i = 0; i < count; ++i) {
    if (group[i] >= 0) found[group[i]] = 0;
  }
  for (int64_t i = 0; i < count; ++i) place[i] = group[i] < 0 ? 0 : found[group[i]]++;
  for (int64_t i = 0; i < count; ++i) size[i] = group[i] < 0 ? 1 : found[group[i]];
}

// Runs the units of a kernel, each in a block of one thread, on torch's threads.
template <class Kernel>
void run(const Kernel& kernel) {
  torch::stable::parallel_for(0, kernel.units(), 1, [&](int64_t begin, int64_t end) {
    typename Kernel::Shared shared;
    for (int64_t unit = begin; unit < end; ++unit) kernel(Block{}, shared, unit);
  });
}

// Calls f(task) once for every task in [0, count). Threads take the next one as they become free: the tasks may differ
// in size, and none depends on which thread runs it.
template <class F>
void for_each_task(int64_t count, F f) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min<int64_t>(count, torch::stable::get_num_threads()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t task = next++; task < count; task = next++) f(task);
    }
  });
}

// Sums f(i) over i in [0, count), eight numbers side by side: as a vector unit does it, and in the same order without one.
template <class T, class F>
T sum_side_by_side(int64_t count, F f) {
  constexpr int64_t kLaneCount = 8;
  T sums[kLaneCount] = {};
  int64_t i = 0;
  for (; i + kLaneCount <= count; i += kLaneCount) {
    for (int64_t lane = 0; lane < kLaneCount; ++lane) sums[lane] += f(i + lane);
  }
  T sum = 0;
  for (; i < count; ++i) sum += f(i);
  for (const T part : sums) sum += part;
  return sum;
}

// Lengths and counts lie in memory that can be read here, so numbers that do not fit are refused and not cut.
inline void check_rows(const Rows& rows, int64_t batch) {
  for (int64_t row = 0; row < batch; ++row) {
    if (rows.lengths != nullptr) glue::check_range("lengths", rows.lengths[row], 0, rows.tokens);
    if (rows.counts != nullptr) glue::check_range("counts", rows.counts[row], 0, rows.most);
  }
}

}  // namespace vitcop::cpu
