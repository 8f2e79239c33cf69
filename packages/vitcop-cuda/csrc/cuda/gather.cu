#include "vitcop/gather.h"

#include "cuda/launch.cuh"

VITCOP_LAUNCH(Gather);
