#include "vitcop/co_prune.h"

#include "cpu/ops.h"

namespace vitcop::cpu {
namespace {

void check_labels(const Tensor& labels, int64_t clusters, const Rows& rows) {
  const int64_t* values = glue::input<int64_t>(labels);
  for (int64_t row = 0; row < labels.size(0); ++row) {
    for (int64_t i = 0; i < rows.length(row); ++i) {
      glue::check_range("labels", values[row * rows.tokens + i], 0, clusters - 1);
    }
  }
}

// The mean of a group of tokens (Equation 6), summed in float64.
template <class T>
void mean_of(const T* hidden, int64_t stride, const int32_t* members, int64_t count, int64_t width, T* mean,
             std::vector<double>& sums) {
  if (count == 1) {
    std::copy_n(hidden + members[0] * stride, width, mean);
    return;
  }
  sums.assign(width, 0.0);
  for (int64_t m = 0; m < count; ++m) {
    const T* own = hidden + members[m] * stride;
    for (int64_t x = 0; x < width; ++x) sums[x] += widen(own[x]);
  }
  const double by = static_cast<double>(std::max<int64_t>(count, 1));
  for (int64_t x = 0; x < width; ++x) mean[x] = narrow<T>(sums[x] / by);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> co_prune(const Tensor& hidden, const Tensor& labels, const Tensor& key_norm,
                                                    int64_t budget, int64_t num_clusters, const OptionalTensor& lengths,
                                                    const OptionalTensor& counts) {
  glue::check_floating("hidden", hidden, 3, hidden);
  const int64_t batch = hidden.size(0), tokens = hidden.size(1), width = hidden.size(2);
  glue::check_integers("labels", labels, {batch, tokens}, hidden);
  glue::check_floating("key_norm", key_norm, 2, hidden);
  glue::check_shape("key_norm", key_norm, {batch, tokens});
  glue::check_range("budget", budget, 1, glue::kMostTokens);
  glue::check_range("num_clusters", num_clusters, 1, glue::kMostTokens);
  const glue::RowArguments arguments(hidden, tokens, budget, lengths, counts);
  const Tensor names = glue::packed(labels), norms = glue::packed(glue::as_dtype(key_norm, Dtype::Float));
  check_rows(arguments.rows(), batch);
  check_labels(names, num_clusters, arguments.rows());
  const Tensor merged = glue::empty(hidden, {batch, budget, width}, hidden.scalar_type());
  const Tensor index = glue::empty(hidden, {batch, budget}, Dtype::Long);
  const Tensor is_merged = glue::empty(hidden, {batch, budget}, Dtype::Bool);
  const Tensor slot = glue::empty(hidden, {batch, tokens}, Dtype::Long);
  std::vector<int32_t> members(batch * tokens), starts(batch * (budget + 1));
  // 64-bit, because the workspace begins with keys of that size.
  std::vector<int64_t> workspace(batch * Assign::workspace_size(tokens, num_clusters) / 2);
  run(Assign{glue::input<int64_t>(names), glue::input<float>(norms), batch, num_clusters, arguments.rows(),
             glue::output<int64_t>(index), glue::output<bool>(is_merged), glue::output<int64_t>(slot), members.data(),
             starts.data(), reinterpret_cast<int32_t*>(workspace.data())});

  const Tensor states = width > 1 && hidden.stride(2) != 1 ? glue::packed(hidden) : hidden;
  const int64_t to_row = states.stride(0), to_token = states.stride(1);
  glue::with_scalar(hidden, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* from = glue::input<T>(states);
    T* to = glue::output<T>(merged);
    torch::stable::parallel_for(0, batch * budget, 4, [&](int64_t begin, int64_t end) {
      std::vector<double> sums;
      for (int64_t output = begin; output < end; ++output) {
        const int64_t row = output / budget;
        const int32_t* range = starts.data() + row * (budget + 1) + output % budget;
        mean_of(from + row * to_row, to_token, members.data() + row * tokens + range[0], range[1] - range[0], width,
                to + output * width, sums);
      }
    });
  });
  return {merged, index, is_merged, slot};
}

}  // namespace vitcop::cpu
