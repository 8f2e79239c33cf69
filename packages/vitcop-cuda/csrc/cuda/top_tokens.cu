#include "vitcop/top_tokens.h"

#include "cuda/launch.cuh"
#include "cuda/sort.cuh"

VITCOP_LAUNCH_SCALARS(TopTokens);
