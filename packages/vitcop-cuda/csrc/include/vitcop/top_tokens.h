// The k most salient tokens of a row, in sequence order.
#pragma once

#include "vitcop/order.h"
#include "vitcop/rows.h"

namespace vitcop {

// saliency [B, n] -> chosen [B, k] int64 ascending, n past the last. A unit is a row.
template <class T>
struct TopTokens {
  const T* saliency;
  int64_t stride_batch, stride_token;
  int64_t batch;
  Rows rows;
  bool smallest;
  int64_t* chosen;
  // Workspace, each [B, n].
  uint32_t* keys;
  int32_t* order;
  int32_t* place;

  static constexpr int kThreads = 512;

  struct Shared {
    int32_t scan[2 * kSlices];
    SortScratch sort;
  };

  VITCOP_BOTH int64_t units() const { return batch; }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& shared, int64_t row) const {
    const int64_t n = rows.tokens, length = rows.length(row), count = rows.count(row);
    uint32_t* own_keys = keys + row * n;
    int32_t* own_order = order + row * n;
    int32_t* own_place = place + row * n;
    const float worst = smallest ? kInfinity : -kInfinity;
    for_each(block, length, [&](int64_t i) {
      const float raw = static_cast<float>(widen(saliency[row * stride_batch + i * stride_token]));
      const float value = without_nan(raw, worst);
      own_keys[i] = smallest ? ascending(value) : descending(value);
    });
    block.sync();
    sort_by_key(block, own_keys, length, 32, own_order, own_place, shared.sort);
    // From the place in the order of saliency to the place among the chosen ones.
    for_each(block, length, [&](int64_t i) { own_order[i] = own_place[i] < count; });
    block.sync();
    exclusive_scan(block, own_order, length, shared.scan);
    int64_t* out = chosen + row * rows.most;
    for_each(block, length, [&](int64_t i) {
      if (own_place[i] < count) out[own_order[i]] = i;
    });
    for_each(block, rows.most - count, [&](int64_t i) { out[count + i] = n; });
    block.sync();
  }
};

}  // namespace vitcop
