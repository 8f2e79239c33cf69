#include "vitcop/top_tokens.h"

#include "cuda/launch.cuh"

VITCOP_LAUNCH_SCALARS(TopTokens);
