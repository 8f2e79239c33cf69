// The CPU kernels of the operators whose schemas vitcop-core defines.
#include "cpu/ops.h"

STABLE_TORCH_LIBRARY_IMPL(vitcop, CPU, library) {
  library.impl("cls_saliency", TORCH_BOX(&vitcop::cpu::cls_saliency));
  library.impl("received_attention", TORCH_BOX(&vitcop::cpu::received_attention));
  library.impl("top_tokens", TORCH_BOX(&vitcop::cpu::top_tokens));
  library.impl("vic", TORCH_BOX(&vitcop::cpu::vic));
  library.impl("key_norm", TORCH_BOX(&vitcop::cpu::key_norm));
  library.impl("co_prune", TORCH_BOX(&vitcop::cpu::co_prune));
  library.impl("gather_tokens", TORCH_BOX(&vitcop::cpu::gather_tokens));
}
