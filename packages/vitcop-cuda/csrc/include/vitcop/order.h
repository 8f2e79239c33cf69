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

// Rows of up to kMostCounted tokens, and of more than kMostSorted, are put in order by counting, which takes n * n
// comparisons and one barrier; the others by the block's sort, where it has one. Of long keys it takes half as many: twice
// the items a thread would not fit into registers.
constexpr int64_t kMostCounted = 256;
template <class Key>
constexpr int64_t kMostSorted = 4 * 4096 / static_cast<int64_t>(sizeof(Key));

// What a block's sort needs in shared memory.
struct alignas(16) SortScratch {
  unsigned char bytes[20 * 1024];
};

// Bits of numbers up to `most`.
VITCOP_DEVICE int bits_of(int64_t most) {
  int bits = 1;
  while (most >> bits != 0) ++bits;
  return bits;
}

// Whether a block's own sort is the faster way to put so many in order.
template <class Key>
VITCOP_DEVICE bool is_for_sort(int64_t count) {
  return count > kMostCounted && count <= kMostSorted<Key>;
}

// Sorts indices by their keys, the lower index first on ties: order[place[i]] = i. Counts for every key the keys before it.
template <class Block, class Key>
VITCOP_DEVICE void count_by_key(const Block& block, const Key* keys, int64_t count, int32_t* order, int32_t* place) {
  sum_each<int32_t>(
      block, count, [&](int64_t i, int64_t j) { return int32_t{comes_before(keys[j], j, keys[i], i)}; },
      [&](int64_t i, int32_t before) {
        order[before] = static_cast<int32_t>(i);
        place[i] = before;
      });
}

// The same by the low `bits` of the keys, above which all keys are 0, in the way that suits their number.
template <class Block, class Key>
VITCOP_DEVICE void sort_by_key(const Block& block, const Key* keys, int64_t count, [[maybe_unused]] int bits,
                               int32_t* order, int32_t* place, [[maybe_unused]] SortScratch& scratch) {
  if constexpr (Block::kHasWarps) {
    if (is_for_sort<Key>(count)) return block.sort(keys, count, bits, order, place, scratch);
  }
  count_by_key(block, keys, count, order, place);
}

// What finding the places in groups takes: three numbers an item, and two a group.
struct GroupScratch {
  uint64_t* keys;
  int32_t *order, *rank, *start, *end;
};

// The same by sorting: what `places_in_groups` does for many.
template <class Block>
VITCOP_DEVICE void places_by_sort(const Block& block, const int32_t* group, int64_t count, int64_t groups,
                                  const GroupScratch& at, SortScratch& scratch, int32_t* place, int32_t* size) {
  for_each(block, count, [&](int64_t i) { at.keys[i] = static_cast<uint64_t>(group[i] < 0 ? groups : group[i]); });
  block.sync();
  block.sort(at.keys, count, bits_of(groups), at.order, at.rank, scratch);
  const auto group_at = [&](int64_t p) { return group[at.order[p]]; };
  for_each(block, count, [&](int64_t p) {
    const int32_t mine = group_at(p);
    if (mine < 0) return;
    if (p == 0 || group_at(p - 1) != mine) at.start[mine] = static_cast<int32_t>(p);
    if (p == count - 1 || group_at(p + 1) != mine) at.end[mine] = static_cast<int32_t>(p) + 1;
  });
  block.sync();
  for_each(block, count, [&](int64_t i) {
    const int32_t mine = group[i];
    place[i] = mine < 0 ? 0 : at.rank[i] - at.start[mine];
    size[i] = mine < 0 ? 1 : at.end[mine] - at.start[mine];
  });
  block.sync();
}

// For every i with group[i] >= 0: how many of its group come before it, and how many the group has. 0 and 1 otherwise.
template <class Block>
VITCOP_DEVICE void places_in_groups(const Block& block, const int32_t* group, int64_t count,
                                    [[maybe_unused]] int64_t groups, [[maybe_unused]] const GroupScratch& at,
                                    [[maybe_unused]] SortScratch& scratch, int32_t* place, int32_t* size) {
  if constexpr (Block::kHasWarps) {
    if (is_for_sort<uint64_t>(count)) {
      return places_by_sort(block, group, count, groups, at, scratch, place, size);
    }
  }
  constexpr int64_t kOne = int64_t{1} << 32;  // of the group; what comes before is counted below it
  sum_each<int64_t>(
      block, count, [&](int64_t i, int64_t j) { return group[j] == group[i] ? kOne + (j < i) : int64_t{0}; },
      [&](int64_t i, int64_t sum) {
        place[i] = group[i] < 0 ? 0 : static_cast<int32_t>(sum % kOne);
        size[i] = group[i] < 0 ? 1 : static_cast<int32_t>(sum / kOne);
      });
}

}  // namespace vitcop
