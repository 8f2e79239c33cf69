// Ragged batches: how many tokens and outputs each row has.
#pragma once

#include "vitcop/portable.h"

namespace vitcop {

// `lengths` and `counts` have one number a row, or are null. Numbers that do not fit are cut to what does: they lie on
// the device, where nobody can look at them without waiting.
struct Rows {
  const int64_t* lengths;
  const int64_t* counts;
  int64_t tokens;  // n
  int64_t most;    // outputs of a row without a count

  // Valid tokens of a row.
  VITCOP_BOTH int64_t length(int64_t row) const {
    return lengths == nullptr ? tokens : smaller(larger(lengths[row], int64_t{0}), tokens);
  }

  // Outputs that a row may have, whether or not it has as many tokens.
  VITCOP_BOTH int64_t budget(int64_t row) const {
    return counts == nullptr ? most : smaller(larger(counts[row], int64_t{0}), most);
  }

  // Outputs that a row has.
  VITCOP_BOTH int64_t count(int64_t row) const { return smaller(budget(row), length(row)); }
};

}  // namespace vitcop
