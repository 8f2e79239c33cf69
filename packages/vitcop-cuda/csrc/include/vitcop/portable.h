// What lets the same lines compile as CUDA device code and as plain C++. No torch in this folder.
//
// A kernel is a struct of raw pointers and sizes. `units()` says how many independent units of work it has; `operator()`
// does one unit with all threads of one block. Inside a unit, work items go through `for_each`, in phases that
// `block.sync()` separates, and every reduction has a fixed shape of its own. So a kernel gives the same bits for any
// number of blocks and threads, one of each included, and the same source runs on a host without a GPU. `kThreads` is the
// launch that suits a kernel, no condition.
//
// Blocks come in two kinds. Those with warps, `Block::kHasWarps`, have whole ones of kLanes threads, whose values
// `from_lane` reads, and `sort`. Folds and scans go through the warps there, and through shared memory and barriers
// elsewhere; the shape is the same, and so are the bits. A host has both kinds.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define VITCOP_DEVICE __device__ inline
#define VITCOP_BOTH __host__ __device__ inline
#else
#define VITCOP_DEVICE inline
#define VITCOP_BOTH inline
#endif

// On a GPU several copies of a loop's body: so many loads are on their way before the first is waited for.
#if defined(__CUDACC__)
#define VITCOP_UNROLL _Pragma("unroll 4")
#else
#define VITCOP_UNROLL
#endif

namespace vitcop {

// Threads side by side on one token, and tokens side by side in one block, of the kernels that take a tile of tokens.
constexpr int kLanes = 32;
constexpr int kTile = 4;

// Partial results of the reductions and scans that span a row.
constexpr int kSlices = 256;

VITCOP_BOTH int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

template <class T>
VITCOP_BOTH T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
VITCOP_BOTH T larger(T a, T b) {
  return a < b ? b : a;
}

// Calls f(i) once for every i in [0, count), spread over the threads of the block.
template <class Block, class F>
VITCOP_DEVICE void for_each(const Block& block, int64_t count, F f) {
  for (int64_t i = block.thread(); i < count; i += block.threads()) f(i);
}

// Folds one value of each of kWidth lanes side by side as a tree, for blocks with warps; the first lane gets the result.
// All lanes of a warp call it together.
template <int kWidth, class Block, class T, class Op>
VITCOP_DEVICE T fold_warp(const Block& block, T value, Op op) {
  const int64_t lane = block.thread() % kLanes;
  for (int half = kWidth / 2; half > 0; half /= 2) value = op(value, block.from_lane(value, lane + half));
  return value;
}

// Folds values[0..kCount) as a tree and returns the result to every thread. kCount is a power of two, and a multiple of
// kLanes. All threads must have passed a sync() after the values were written; the values may be written again at once.
template <int kCount, class Block, class T, class Op>
VITCOP_DEVICE T fold(const Block& block, T* values, Op op) {
  if constexpr (Block::kHasWarps) {  // every warp folds all of them: no barrier until the end
    constexpr int kOwn = kCount / kLanes;
    const int64_t lane = block.thread() % kLanes;
    T own[kOwn];
    for (int k = 0; k < kOwn; ++k) own[k] = values[k * kLanes + lane];
    for (int half = kOwn / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) own[k] = op(own[k], own[k + half]);
    }
    const T result = block.from_lane(fold_warp<kLanes>(block, own[0], op), 0);
    block.sync();
    return result;
  } else {
    for (int half = kCount / 2; half > 0; half /= 2) {
      for_each(block, half, [&](int64_t i) { values[i] = op(values[i], values[i + half]); });
      block.sync();
    }
    const T result = values[0];
    block.sync();
    return result;
  }
}

// Folds value(row, lane) over kWidth lanes as a tree, for each of kRows rows, and calls finish(row, result) once a row.
// Ends with a sync(). kRows * kWidth is a multiple of kLanes; `scratch` has as many numbers, for blocks without warps.
template <int kRows, int kWidth, class Block, class T, class F, class Op, class Finish>
VITCOP_DEVICE void fold_rows(const Block& block, T* scratch, F value, Op op, Finish finish) {
  if constexpr (Block::kHasWarps) {
    for_each(block, kRows * kWidth, [&](int64_t item) {
      const T folded = fold_warp<kWidth>(block, value(item / kWidth, item % kWidth), op);
      if (item % kWidth == 0) finish(item / kWidth, folded);
    });
  } else {
    for_each(block, kRows * kWidth, [&](int64_t item) { scratch[item] = value(item / kWidth, item % kWidth); });
    block.sync();
    for (int half = kWidth / 2; half > 0; half /= 2) {
      for_each(block, kRows * half, [&](int64_t i) {
        T* row = scratch + i / half * kWidth + i % half;
        row[0] = op(row[0], row[half]);
      });
      block.sync();
    }
    for_each(block, kRows, [&](int64_t row) { finish(row, scratch[row * kWidth]); });
  }
  block.sync();
}

// Sums f(i, j) over all j in [0, count) and calls finish(i, sum), for each i in [0, count). For integers: the order of the
// terms depends on the block. Ends with a sync().
template <class T, class Block, class F, class Finish>
VITCOP_DEVICE void sum_each(const Block& block, int64_t count, F f, Finish finish) {
  if constexpr (Block::kHasWarps) {  // several lanes an i, and whole warps
    constexpr int kWidth = 8;
    for_each(block, ceil_div(count * kWidth, kLanes) * kLanes, [&](int64_t item) {
      const int64_t i = item / kWidth;
      T sum = 0;
      for (int64_t j = item % kWidth; i < count && j < count; j += kWidth) sum += f(i, j);
      sum = fold_warp<kWidth>(block, sum, [](T a, T b) { return a + b; });
      if (item % kWidth == 0 && i < count) finish(i, sum);
    });
  } else {
    for_each(block, count, [&](int64_t i) {
      T sum = 0;
      for (int64_t j = 0; j < count; ++j) sum += f(i, j);
      finish(i, sum);
    });
  }
  block.sync();
}

// Sums f(i) over i in [0, count), in a fixed order; every thread gets the result.
template <class T, class Block, class F>
VITCOP_DEVICE T sum_over(const Block& block, T* partial, int64_t count, F f) {
  for_each(block, kSlices, [&](int64_t slice) {
    T sum = 0;
    for (int64_t i = slice; i < count; i += kSlices) sum += f(i);
    partial[slice] = sum;
  });
  block.sync();
  return fold<kSlices>(block, partial, [](T a, T b) { return a + b; });
}

// Turns kSlices numbers into the sums up to and with each of them; they are in `from` or in `to` then.
template <class Block>
VITCOP_DEVICE int32_t* scan_sums(const Block& block, int32_t* from, int32_t* to) {
  for (int offset = 1; offset < kSlices; offset *= 2) {
    for_each(block, kSlices, [&](int64_t s) { to[s] = from[s] + (s >= offset ? from[s - offset] : 0); });
    block.sync();
    int32_t* swap = from;
    from = to;
    to = swap;
  }
  return from;
}

// The same in place, a warp for kLanes numbers and then one for what the warps found.
template <class Block>
VITCOP_DEVICE void scan_sums_in_warps(const Block& block, int32_t* sums) {
  const int64_t lane = block.thread() % kLanes;
  const auto scan = [&](int32_t sum) {
    for (int by = 1; by < kLanes; by *= 2) {
      const int32_t below = block.from_lane(sum, lane - by);
      if (lane >= by) sum += below;
    }
    return sum;
  };
  for_each(block, kSlices, [&](int64_t slice) { sums[slice] = scan(sums[slice]); });
  block.sync();
  // Each warp finds what comes before its own numbers for itself.
  constexpr int kWarps = kSlices / kLanes;
  const int32_t ends = scan(lane < kWarps ? sums[lane * kLanes + kLanes - 1] : 0);
  block.sync();
  for_each(block, kSlices, [&](int64_t slice) {
    const int32_t before = block.from_lane(ends, slice / kLanes - 1);
    if (slice >= kLanes) sums[slice] += before;
  });
  block.sync();
}

// Replaces values[i] by the sum of those before it and returns the sum of all. `scratch` holds 2 * kSlices numbers.
template <class Block>
VITCOP_DEVICE int32_t exclusive_scan(const Block& block, int32_t* values, int64_t count, int32_t* scratch) {
  const int64_t chunk = ceil_div(count, kSlices);
  for_each(block, kSlices, [&](int64_t slice) {
    int32_t sum = 0;
    for (int64_t i = slice * chunk; i < smaller((slice + 1) * chunk, count); ++i) sum += values[i];
    scratch[slice] = sum;
  });
  block.sync();
  int32_t* sums = scratch;
  if constexpr (Block::kHasWarps) {
    scan_sums_in_warps(block, sums);
  } else {
    sums = scan_sums(block, scratch, scratch + kSlices);
  }
  const int32_t total = sums[kSlices - 1];
  for_each(block, kSlices, [&](int64_t slice) {
    int32_t running = slice == 0 ? 0 : sums[slice - 1];
    for (int64_t i = slice * chunk; i < smaller((slice + 1) * chunk, count); ++i) {
      const int32_t value = values[i];
      values[i] = running;
      running += value;
    }
  });
  block.sync();
  return total;
}

// Whether this block is the last of `count` to come here, and so sees what all of them wrote before. Blocks of the same
// number that come later must find the counter at 0. `arrived` is shared by the threads.
template <class Block>
VITCOP_DEVICE bool is_last_block(const Block& block, int32_t& arrived, int32_t* counter, int64_t count) {
  block.fence();
  block.sync();
  if (block.thread() == 0) arrived = block.count_up(counter) + 1;
  block.sync();
  const bool is_last = arrived == count;
  block.fence();
  return is_last;
}

}  // namespace vitcop
