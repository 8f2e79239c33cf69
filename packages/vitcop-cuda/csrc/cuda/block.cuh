// A block of threads on a GPU, as the kernels of include/vitcop know it.
#pragma once

#include <cstring>

#include "vitcop/order.h"

namespace vitcop::cuda {

template <int kThreads>
struct Block {
  static constexpr bool kHasWarps = true;
  static_assert(kThreads % kLanes == 0, "warps are whole");

  __device__ int64_t thread() const { return threadIdx.x; }
  static constexpr __device__ int64_t threads() { return kThreads; }
  __device__ void sync() const { __syncthreads(); }
  __device__ void fence() const { __threadfence(); }
  __device__ int32_t count_up(int32_t* counter) const { return atomicAdd(counter, 1); }

  // The value that another lane of the warp gives; any lane of the warp where there is none of that number.
  template <class T>
  __device__ T from_lane(T value, int64_t lane) const {
    static_assert(sizeof(T) % sizeof(uint32_t) == 0, "values travel in words");
    uint32_t words[sizeof(T) / sizeof(uint32_t)];
    memcpy(words, &value, sizeof value);
    for (uint32_t& word : words) word = __shfl_sync(0xffffffffu, word, static_cast<int>(lane));
    memcpy(&value, words, sizeof value);
    return value;
  }

  // Sorts up to kMostSorted<Key> indices by the low `bits` of their keys, the lower index first on ties: order[place[i]] = i.
  // Defined in cuda/sort.cuh.
  template <class Key>
  __device__ void sort(const Key* keys, int64_t count, int bits, int32_t* order, int32_t* place,
                       SortScratch& scratch) const;
};

}  // namespace vitcop::cuda
