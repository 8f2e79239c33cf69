// A block of one thread.
#pragma once

#include <cstdint>

namespace vitcop::host {

struct SerialBlock {
  static constexpr int64_t thread() { return 0; }
  static constexpr int64_t threads() { return 1; }
  static void sync() {}
};

}  // namespace vitcop::host
