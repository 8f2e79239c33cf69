// A block with warps on a host: what a GPU's block has beyond barriers, with the same meaning.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <vector>

#include "host/launch.h"
#include "vitcop/order.h"

namespace vitcop::host {

// What the threads of one block share: a barrier for each warp, and a place for each thread's value.
struct Warps {
  explicit Warps(int64_t threads) : values(threads) {
    for (int64_t warp = 0; warp < threads / kLanes; ++warp) barriers.emplace_back(kLanes);
  }

  std::deque<std::barrier<>> barriers;
  std::vector<std::array<unsigned char, 8>> values;
};

class WarpBlock : public ThreadedBlock {
 public:
  static constexpr bool kHasWarps = true;

  // `threads` is a multiple of kLanes.
  WarpBlock(int64_t thread, int64_t threads, std::barrier<>& barrier, Warps& warps)
      : ThreadedBlock(thread, threads, barrier), warps_(warps) {}

  // The value that another lane of the warp gives; any lane of the warp where there is none of that number.
  template <class T>
  T from_lane(T value, int64_t lane) const {
    static_assert(sizeof(T) <= 8);
    const int64_t warp = thread() / kLanes;
    std::memcpy(warps_.values[thread()].data(), &value, sizeof value);
    warps_.barriers[warp].arrive_and_wait();
    std::memcpy(&value, warps_.values[warp * kLanes + (lane & (kLanes - 1))].data(), sizeof value);
    warps_.barriers[warp].arrive_and_wait();
    return value;
  }

  // As the GPU's, which reads no more bits than it is told to.
  template <class Key>
  void sort(const Key* keys, int64_t count, int bits, int32_t* order, int32_t* place, SortScratch& /*scratch*/) const {
    if (thread() == 0) {
      const Key read = bits < static_cast<int>(8 * sizeof(Key)) ? (Key{1} << bits) - 1 : ~Key{0};
      for (int64_t i = 0; i < count; ++i) order[i] = static_cast<int32_t>(i);
      std::stable_sort(order, order + count, [&](int32_t a, int32_t b) { return (keys[a] & read) < (keys[b] & read); });
      for (int64_t i = 0; i < count; ++i) place[order[i]] = static_cast<int32_t>(i);
    }
    sync();
  }

 private:
  Warps& warps_;
};

}  // namespace vitcop::host
