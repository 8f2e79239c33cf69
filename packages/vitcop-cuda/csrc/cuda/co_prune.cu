#include "vitcop/co_prune.h"

#include "cuda/launch.cuh"

VITCOP_LAUNCH_SCALARS(MergeMeans);
VITCOP_LAUNCH(Assign);
