#include "vitcop/received_attention.h"

#include "cuda/launch.cuh"

VITCOP_LAUNCH_SCALARS(QuerySums);
VITCOP_LAUNCH_SCALARS(KeySums);
VITCOP_LAUNCH(MeanReceived);
