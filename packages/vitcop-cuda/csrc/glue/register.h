// The implementations of every operator under one dispatch key.
#pragma once

#include "glue/device_ops.h"

namespace vitcop::glue {

template <class Launcher>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("cls_saliency", TORCH_BOX(&cls_saliency<Launcher>));
  library.impl("received_attention", TORCH_BOX(&received_attention<Launcher>));
  library.impl("top_tokens", TORCH_BOX(&top_tokens<Launcher>));
  library.impl("vic", TORCH_BOX(&vic<Launcher>));
  library.impl("key_norm", TORCH_BOX(&key_norm<Launcher>));
  library.impl("co_prune", TORCH_BOX(&co_prune<Launcher>));
  library.impl("gather_tokens", TORCH_BOX(&gather_tokens<Launcher>));
}

}  // namespace vitcop::glue
