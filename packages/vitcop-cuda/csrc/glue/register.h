// The implementations of every operator under one dispatch key.
#pragma once

#include <torch/library.h>

#include "glue/device_ops.h"

namespace vitcop::glue {

template <class Launcher>
void implement(torch::Library& library) {
  library.impl("cls_saliency", &cls_saliency<Launcher>);
  library.impl("top_tokens", &top_tokens<Launcher>);
  library.impl("vic", &vic<Launcher>);
  library.impl("key_norm", &key_norm<Launcher>);
  library.impl("co_prune", &co_prune<Launcher>);
  library.impl("gather_tokens", &gather_tokens<Launcher>);
}

}  // namespace vitcop::glue
