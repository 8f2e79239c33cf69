#include "vitcop/top_tokens.h"

#include "cpu/ops.h"

namespace vitcop::cpu {

Tensor top_tokens(const Tensor& saliency, int64_t k, bool smallest, const OptionalTensor& lengths,
                  const OptionalTensor& counts) {
  glue::check_floating("saliency", saliency, 2, saliency);
  const int64_t batch = saliency.size(0), tokens = saliency.size(1);
  glue::check_range("k", k, 1, tokens);
  const glue::RowArguments arguments(saliency, tokens, k, lengths, counts);
  check_rows(arguments.rows(), batch);
  const Tensor chosen = glue::empty(saliency, {batch, k}, Dtype::Long);
  std::vector<uint32_t> keys(batch * tokens);
  std::vector<int32_t> order(batch * tokens), place(batch * tokens);
  glue::with_scalar(saliency, [&](auto tag) {
    using T = typename decltype(tag)::type;
    run(TopTokens<T>{glue::input<T>(saliency), saliency.stride(0), saliency.stride(1), batch, arguments.rows(),
                     smallest, glue::output<int64_t>(chosen), keys.data(), order.data(), place.data()});
  });
  return chosen;
}

}  // namespace vitcop::cpu
