#include "vitcop/cls_saliency.h"

#include "cuda/launch.cuh"

VITCOP_LAUNCH_SCALARS(HeadAttention);
VITCOP_LAUNCH(SumHeads);
