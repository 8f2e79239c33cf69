// Runs the kernels on a host: blocks one after the other, the threads of a block as threads that wait at real barriers.
#pragma once

#include <atomic>
#include <barrier>
#include <memory>
#include <thread>
#include <vector>

#include "host/serial_block.h"
#include "vitcop/portable.h"

namespace vitcop::host {

class ThreadedBlock {
 public:
  static constexpr bool kHasWarps = false;

  ThreadedBlock(int64_t thread, int64_t threads, std::barrier<>& barrier)
      : thread_(thread), threads_(threads), barrier_(barrier) {}

  int64_t thread() const { return thread_; }
  int64_t threads() const { return threads_; }
  void sync() const { barrier_.arrive_and_wait(); }
  // What a thread wrote before a barrier is seen behind it, and by whoever counts after the thread that waited there.
  static void fence() {}
  static int32_t count_up(int32_t* counter) { return std::atomic_ref(*counter).fetch_add(1); }

 private:
  int64_t thread_, threads_;
  std::barrier<>& barrier_;
};

// All units of a kernel in one block of `threads` threads.
template <class Kernel>
void run(const Kernel& kernel, int64_t threads) {
  // Not initialised: the kernels must not count on what shared memory holds.
  const auto shared = std::make_unique_for_overwrite<typename Kernel::Shared>();
  if (threads == 1) {
    for (int64_t unit = 0; unit < kernel.units(); ++unit) kernel(SerialBlock{}, *shared, unit);
    return;
  }
  std::barrier barrier(threads);
  std::vector<std::thread> team;
  for (int64_t thread = 0; thread < threads; ++thread) {
    team.emplace_back([&, thread] {
      const ThreadedBlock block(thread, threads, barrier);
      for (int64_t unit = 0; unit < kernel.units(); ++unit) {
        kernel(block, *shared, unit);
        block.sync();
      }
    });
  }
  for (std::thread& member : team) member.join();
}

}  // namespace vitcop::host
