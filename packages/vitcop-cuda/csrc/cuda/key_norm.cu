#include "vitcop/key_norm.h"

#include "cuda/launch.cuh"

VITCOP_LAUNCH_SCALARS(KeyNorms);
