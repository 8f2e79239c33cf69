// The sort of a GPU's block, which is CUB's. Included by the .cu files of kernels that sort, because it compiles slowly.
#pragma once

#include <cub/block/block_radix_sort.cuh>

#include "cuda/block.cuh"

namespace vitcop::cuda {

template <int kItems, int kThreads, class Key>
__device__ void sort_items(const Key* keys, int count, int bits, int32_t* order, int32_t* place, SortScratch& scratch) {
  constexpr int kBits = 4;             // a pass, CUB's own choice
  constexpr bool kKeepsCounts = false;  // in registers: with the kernel's own there are too few
  using Sort = cub::BlockRadixSort<Key, kThreads, kItems, int32_t, kBits, kKeepsCounts>;
  using Storage = typename Sort::TempStorage;
  static_assert(sizeof(Storage) <= sizeof scratch.bytes && alignof(Storage) <= alignof(SortScratch),
                "the scratch takes what the sort needs");
  const int first = static_cast<int>(threadIdx.x) * kItems;
  Key own[kItems];
  int32_t index[kItems];
  for (int k = 0; k < kItems; ++k) {
    index[k] = first + k;
    // What is no item comes last: no key is larger, and the sort is stable.
    own[k] = index[k] < count ? keys[index[k]] : ~Key{0};
  }
  Sort(reinterpret_cast<Storage&>(scratch)).Sort(own, index, 0, bits);
  for (int k = 0; k < kItems; ++k) {
    if (first + k >= count) continue;
    order[first + k] = index[k];
    place[index[k]] = first + k;
  }
}

template <int kThreads>
template <class Key>
__device__ void Block<kThreads>::sort(const Key* keys, int64_t count, int bits, int32_t* order, int32_t* place,
                                      SortScratch& scratch) const {
  static_assert(kMostSorted<Key> % (4 * kThreads) == 0, "every thread takes as many items");
  constexpr int kMany = kMostSorted<Key> / kThreads, kFew = kMany / 4;
  if (count <= kFew * kThreads) {
    sort_items<kFew, kThreads>(keys, static_cast<int>(count), bits, order, place, scratch);
  } else {
    sort_items<kMany, kThreads>(keys, static_cast<int>(count), bits, order, place, scratch);
  }
  sync();
}

}  // namespace vitcop::cuda
