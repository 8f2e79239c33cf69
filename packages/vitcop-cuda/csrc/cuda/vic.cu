#include "vitcop/cluster.h"

#include "cuda/launch.cuh"

VITCOP_LAUNCH_SCALARS(Center);
VITCOP_LAUNCH(Cluster);
VITCOP_LAUNCH(Diagonal);
VITCOP_LAUNCH(Densities<>);
VITCOP_LAUNCH(Parents<>);
VITCOP_LAUNCH(Centers<>);
VITCOP_LAUNCH(Adopt<>);
VITCOP_LAUNCH(Labels);
