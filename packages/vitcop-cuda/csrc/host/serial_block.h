// A block of one thread.
#pragma once

#include <cstdint>

namespace vitcop::host {

struct SerialBlock {
  static constexpr bool kHasWarps = false;
  static constexpr int64_t thread() { return 0; }
  static constexpr int64_t threads() { return 1; }
  static void sync() {}
  static void fence() {}
  static int32_t count_up(int32_t* counter) { return (*counter)++; }
};

}  // namespace vitcop::host
