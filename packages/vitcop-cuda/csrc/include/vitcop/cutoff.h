// The cutoff distance of a clustering.
#pragma once

#include "vitcop/portable.h"

namespace vitcop {

// d_c of every row: one for all, or one for each.
struct Cutoff {
  double common;
  const float* rows;  // [B], or null

  // What squared distances are multiplied by.
  VITCOP_BOTH double scale(int64_t row) const {
    const double own = rows == nullptr ? common : static_cast<double>(rows[row]);
    return -1.0 / (own * own);
  }
};

}  // namespace vitcop
