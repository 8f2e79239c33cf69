#include "vitcop/co_prune.h"

#include "cuda/launch.cuh"
#include "cuda/sort.cuh"

VITCOP_LAUNCH_SCALARS(MergeMeans);
VITCOP_LAUNCH(Assign);
