#include "vitcop/cls_saliency.h"

#include "cuda/launch.cuh"

VITCOP_LAUNCH_SCALARS(HeadScores);
VITCOP_LAUNCH(SumHeads);
