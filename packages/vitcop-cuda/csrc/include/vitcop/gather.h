// Rows of several tensors at the same places, in one pass.
#pragma once

#include "vitcop/portable.h"

namespace vitcop {

constexpr int kMostGathered = 8;

// One tensor of [B, n, bytes of a token], contiguous within a token; a batch stride of 0 shares one row among all.
struct GatherPart {
  const char* from;
  char* to;  // [B, k, bytes of a token]
  int64_t bytes;
  int64_t stride_batch, stride_token;  // bytes
  bool by_words;                       // everything is a multiple of 16 bytes
};

// index [B, k] -> rows of every part; a place outside [0, n) gives zeros. A unit is one place.
struct Gather {
  GatherPart parts[kMostGathered];
  int count;
  const int64_t* index;
  int64_t batch, places, tokens;

  static constexpr int kThreads = 256;

  struct Shared {};

  VITCOP_BOTH int64_t units() const { return batch * places; }

  template <class Block>
  VITCOP_DEVICE void operator()(const Block& block, Shared& /*shared*/, int64_t unit) const {
    const int64_t row = unit / places, token = index[unit];
    const bool is_there = token >= 0 && token < tokens;
    for (int p = 0; p < count; ++p) {
      const GatherPart& part = parts[p];
      const char* from = part.from + row * part.stride_batch + (is_there ? token : 0) * part.stride_token;
      char* to = part.to + unit * part.bytes;
      if (part.by_words) {
        copy<Words>(block, from, to, part.bytes / int64_t{sizeof(Words)}, is_there);
      } else {
        copy<char>(block, from, to, part.bytes, is_there);
      }
    }
  }

 private:
  struct alignas(16) Words {
    uint32_t part[4];
  };

  template <class Unit, class Block>
  static VITCOP_DEVICE void copy(const Block& block, const char* from, char* to, int64_t count, bool is_there) {
    const Unit* source = reinterpret_cast<const Unit*>(from);
    Unit* target = reinterpret_cast<Unit*>(to);
    for_each(block, count, [&](int64_t i) { target[i] = is_there ? source[i] : Unit{}; });
  }
};

}  // namespace vitcop
