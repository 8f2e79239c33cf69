// Orders without ties: by a key, then by the lower index.
#pragma once

#include "vitcop/scalar.h"

namespace vitcop {

constexpr float kInfinity = __builtin_huge_valf();

// An integer in the order of the number: -inf first, +inf last, the two zeros equal. Not for NaN.
VITCOP_DEVICE uint32_t ascending(float value) {
  const uint32_t bits = bits_of_float(value == 0.0f ? 0.0f : value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

VITCOP_DEVICE uint32_t descending(float value) { return ~ascending(value); }

VITCOP_DEVICE float without_nan(float value, float instead) { return value == value ? value : instead; }

VITCOP_DEVICE bool comes_before(uint64_t key, int64_t index, uint64_t other_key, int64_t other_index) {
  return key < other_key || (key == other_key && index < other_index);
}

// Sorts indices by key: order[place[i]] = i. Counts for every key the keys before it: n * n comparisons that need no
// exchange between threads, which for the few thousand tokens of a row is less than the barriers of a sort.
template <class Block>
VITCOP_DEVICE void sort_by_key(const Block& block, const uint64_t* keys, int64_t count, int32_t* order,
                               int32_t* place) {
  for_each(block, count, [&](int64_t i) {
    const uint64_t key = keys[i];
    int32_t before = 0;
    for (int64_t j = 0; j < count; ++j) before += comes_before(keys[j], j, key, i);
    order[before] = static_cast<int32_t>(i);
    place[i] = before;
  });
  block.sync();
}

// For every i with group[i] >= 0: how many of its group come before it, and how many the group has. 0 and 1 otherwise.
template <class Block>
VITCOP_DEVICE void places_in_groups(const Block& block, const int32_t* group, int64_t count, int32_t* /*scratch*/,
                                    int32_t* place, int32_t* size) {
  for_each(block, count, [&](int64_t i) {
    const int32_t mine = group[i];
    int32_t before = 0, all = 0;
    if (mine >= 0) {
      for (int64_t j = 0; j < count; ++j) {
        const int32_t is_same = group[j] == mine;
        all += is_same;
        before += is_same & (j < i);
      }
    }
    place[i] = before;
    size[i] = mine < 0 ? 1 : all;
  });
  block.sync();
}

}  // namespace vitcop
