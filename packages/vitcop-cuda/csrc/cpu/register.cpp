// The CPU kernels of the operators whose schemas vitcop-core defines.
#include <torch/library.h>

#include "cpu/ops.h"

TORCH_LIBRARY_IMPL(vitcop, CPU, library) {
  library.impl("cls_saliency", &vitcop::cpu::cls_saliency);
  library.impl("top_tokens", &vitcop::cpu::top_tokens);
  library.impl("vic", &vitcop::cpu::vic);
  library.impl("key_norm", &vitcop::cpu::key_norm);
  library.impl("co_prune", &vitcop::cpu::co_prune);
  library.impl("gather_tokens", &vitcop::cpu::gather_tokens);
}
