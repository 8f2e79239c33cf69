// What lets the same lines compile as CUDA device code and as plain C++. No torch in this folder.
//
// A kernel is a struct of raw pointers and sizes. `units()` says how many independent units of work it has; `operator()`
// does one unit with all threads of one block. Inside a unit, work items go through `for_each`, in phases that
// `block.sync()` separates, and every reduction has a fixed shape of its own. So a kernel gives the same bits for any
// number of blocks and threads, one of each included, and the same source runs on a host without a GPU. `kThreads` is the
// launch that suits a kernel, no condition.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define VITCOP_DEVICE __device__ inline
#define VITCOP_BOTH __host__ __device__ inline
#else
#define VITCOP_DEVICE inline
#define VITCOP_BOTH inline
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

// Folds values[0..kCount) into values[0] as a tree and returns it to every thread. kCount is a power of two. All threads
// must have passed a sync() after the values were written; the values may be written again at once.
template <int kCount, class Block, class T, class Op>
VITCOP_DEVICE T fold(const Block& block, T* values, Op op) {
  for (int half = kCount / 2; half > 0; half /= 2) {
    for_each(block, half, [&](int64_t i) { values[i] = op(values[i], values[i + half]); });
    block.sync();
  }
  const T result = values[0];
  block.sync();
  return result;
}

// The same for kTile rows of kLanes values at once: row r's result is left in values[r * kLanes].
template <class Block, class T, class Op>
VITCOP_DEVICE void fold_lanes(const Block& block, T* values, Op op) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for_each(block, kTile * half, [&](int64_t i) {
      T* row = values + i / half * kLanes + i % half;
      row[0] = op(row[0], row[half]);
    });
    block.sync();
  }
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
  int32_t* from = scratch;
  int32_t* to = scratch + kSlices;
  for (int offset = 1; offset < kSlices; offset *= 2) {
    for_each(block, kSlices, [&](int64_t s) { to[s] = from[s] + (s >= offset ? from[s - offset] : 0); });
    block.sync();
    int32_t* swap = from;
    from = to;
    to = swap;
  }
  const int32_t total = from[kSlices - 1];
  for_each(block, kSlices, [&](int64_t slice) {
    int32_t running = slice == 0 ? 0 : from[slice - 1];
    for (int64_t i = slice * chunk; i < smaller((slice + 1) * chunk, count); ++i) {
      const int32_t value = values[i];
      values[i] = running;
      running += value;
    }
  });
  block.sync();
  return total;
}

}  // namespace vitcop
