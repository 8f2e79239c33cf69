// The operators over the kernels of include/vitcop, for whatever launches them: a GPU's stream, or a host's threads.
//
// A Launcher is made for a device and called with kernels; it runs them one after the other.
#pragma once

#include <ATen/ops/bmm.h>
#include <c10/core/DeviceGuard.h>

#include <tuple>
#include <vector>

#include "glue/arguments.h"
#include "vitcop/cls_saliency.h"
#include "vitcop/co_prune.h"
#include "vitcop/gather.h"
#include "vitcop/key_norm.h"
#include "vitcop/top_tokens.h"
#include "vitcop/vic.h"

namespace vitcop::glue {

template <class Launcher>
Tensor key_norm(const Tensor& keys) {
  check_floating("keys", keys, 4, keys);
  check_range("tokens", keys.size(2), 0, kMostTokens);
  const c10::DeviceGuard guard(keys.device());
  const Launcher launch(keys.device());
  const Tensor norms = empty_like(keys, {keys.size(0), keys.size(2)}, at::kFloat);
  with_scalar(keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(KeyNorms<T>{input<T>(keys), keys.size(0), keys.size(1), keys.size(2), keys.size(3), keys.stride(0),
                       keys.stride(1), keys.stride(2), keys.stride(3), output<float>(norms)});
  });
  return norms;
}

template <class Launcher>
Tensor cls_saliency(const Tensor& query_cls, const Tensor& keys, double scale) {
  check_floating("keys", keys, 4, keys);
  check_floating("query_cls", query_cls, 3, keys);
  const int64_t batch = keys.size(0), heads = keys.size(1), tokens = keys.size(2), width = keys.size(3);
  check_shape("query_cls", query_cls, {batch, heads, width});
  check_range("tokens", tokens, 0, kMostTokens);
  const c10::DeviceGuard guard(keys.device());
  const Launcher launch(keys.device());
  const Tensor query = query_cls.to(keys.scalar_type());
  const Tensor saliency = empty_like(keys, {batch, tokens}, at::kFloat);
  const Tensor probabilities = empty_like(keys, {batch, heads, tokens}, at::kFloat);
  with_scalar(keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(HeadAttention<T>{input<T>(query), input<T>(keys), static_cast<float>(scale), batch, heads, tokens, width,
                            query.stride(0), query.stride(1), query.stride(2), keys.stride(0), keys.stride(1),
                            keys.stride(2), keys.stride(3), output<float>(probabilities)});
  });
  launch(SumHeads{input<float>(probabilities), batch, heads, tokens, output<float>(saliency)});
  return saliency;
}

template <class Launcher>
Tensor top_tokens(const Tensor& saliency, int64_t k, bool smallest, const OptionalTensor& lengths,
                  const OptionalTensor& counts) {
  check_floating("saliency", saliency, 2, saliency);
  const int64_t batch = saliency.size(0), tokens = saliency.size(1);
  check_range("k", k, 1, tokens);
  const RowArguments arguments(saliency, tokens, k, lengths, counts);
  const c10::DeviceGuard guard(saliency.device());
  const Launcher launch(saliency.device());
  const Tensor chosen = empty_like(saliency, {batch, k}, at::kLong);
  Workspace workspace;
  const int64_t keys = workspace.reserve<uint64_t>(batch * tokens);
  const int64_t order = workspace.reserve<int32_t>(batch * tokens);
  const int64_t place = workspace.reserve<int32_t>(batch * tokens);
  workspace.allocate(saliency);
  with_scalar(saliency, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(TopTokens<T>{input<T>(saliency), saliency.stride(0), saliency.stride(1), batch, arguments.rows(), smallest,
                        output<int64_t>(chosen), workspace.at<uint64_t>(keys), workspace.at<int32_t>(order),
                        workspace.at<int32_t>(place)});
  });
  return chosen;
}

using Clusters = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Launcher>
Clusters vic(const Tensor& features, const Tensor& positions, int64_t num_centers, double cutoff_distance,
             double spatial_threshold, const OptionalTensor& lengths, const OptionalTensor& counts) {
  check_floating("features", features, 3, features);
  const int64_t batch = features.size(0), tokens = features.size(1), width = features.size(2);
  check_floating("positions", positions, 3, features);
  check_shape("positions", positions, {batch, tokens, 2});
  check_range("num_centers", num_centers, 1, tokens);
  const RowArguments arguments(features, tokens, num_centers, lengths, counts);
  const Rows& rows = arguments.rows();
  const c10::DeviceGuard guard(features.device());
  const Launcher launch(features.device());
  const Tensor labels = empty_like(features, {batch, tokens}, at::kLong);
  const Tensor centers = empty_like(features, {batch, num_centers}, at::kLong);
  const Tensor density = empty_like(features, {batch, tokens}, at::kFloat);
  const Tensor distance = empty_like(features, {batch, tokens}, at::kFloat);
  const Tensor importance = empty_like(features, {batch, tokens}, at::kFloat);

  Workspace workspace;
  const int64_t centered_at = workspace.reserve<double>(batch * tokens * width);
  const int64_t gram_at = workspace.reserve<double>(batch * tokens * tokens);
  const int64_t diagonal_at = workspace.reserve<double>(batch * tokens);
  const int64_t parent_at = workspace.reserve<int32_t>(batch * tokens);
  const int64_t label_at = workspace.reserve<int32_t>(batch * tokens);
  const int64_t pointers_at = workspace.reserve<int32_t>(batch * tokens * 2);
  workspace.allocate(features);
  const Tensor dense = features.contiguous();
  const Tensor places = positions.to(at::kFloat).contiguous();
  with_scalar(features, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(Center<T>{input<T>(dense), batch, width, rows, workspace.at<double>(centered_at)});
  });
  const Tensor centered = workspace.doubles(centered_at, {batch, tokens, width});
  Tensor gram = workspace.doubles(gram_at, {batch, tokens, tokens});
  launch.multiply(gram, centered);
  double* diagonal = workspace.at<double>(diagonal_at);
  launch(Diagonal{input<double>(gram), batch, tokens, diagonal});
  const Distances distances{input<double>(gram), diagonal, tokens};
  launch(Densities{distances, batch, rows, cutoff_distance, output<float>(density)});
  int32_t* parent = workspace.at<int32_t>(parent_at);
  int32_t* label = workspace.at<int32_t>(label_at);
  launch(Parents{distances, input<float>(density), input<float>(places), batch, rows,
                 squared_threshold(spatial_threshold), parent, output<float>(distance), output<float>(importance)});
  launch(Centers{input<float>(density), input<float>(importance), batch, rows, output<int64_t>(centers), label});
  launch(Adopt{distances, input<int64_t>(centers), parent, batch, rows, label});
  launch(Labels{parent, label, batch, rows, output<int64_t>(labels), workspace.at<int32_t>(pointers_at)});
  return {labels, centers, density, distance, importance};
}

using Pruned = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class Launcher>
Pruned co_prune(const Tensor& hidden, const Tensor& labels, const Tensor& key_norm, int64_t budget,
                int64_t num_clusters, const OptionalTensor& lengths, const OptionalTensor& counts) {
  check_floating("hidden", hidden, 3, hidden);
  const int64_t batch = hidden.size(0), tokens = hidden.size(1), width = hidden.size(2);
  check_integers("labels", labels, {batch, tokens}, hidden);
  check_floating("key_norm", key_norm, 2, hidden);
  check_shape("key_norm", key_norm, {batch, tokens});
  check_range("budget", budget, 1, kMostTokens);
  check_range("num_clusters", num_clusters, 1, kMostTokens);
  const RowArguments arguments(hidden, tokens, budget, lengths, counts);
  const c10::DeviceGuard guard(hidden.device());
  const Launcher launch(hidden.device());
  const Tensor merged = empty_like(hidden, {batch, budget, width}, hidden.scalar_type());
  const Tensor index = empty_like(hidden, {batch, budget}, at::kLong);
  const Tensor is_merged = empty_like(hidden, {batch, budget}, at::kBool);
  const Tensor slot = empty_like(hidden, {batch, tokens}, at::kLong);

  Workspace workspace;
  const int64_t members_at = workspace.reserve<int32_t>(batch * tokens);
  const int64_t starts_at = workspace.reserve<int32_t>(batch * (budget + 1));
  const int64_t rest_at = workspace.reserve<int32_t>(batch * Assign::workspace_size(tokens, num_clusters));
  workspace.allocate(hidden);
  int32_t* members = workspace.at<int32_t>(members_at);
  int32_t* starts = workspace.at<int32_t>(starts_at);
  const Tensor names = labels.contiguous();
  const Tensor norms = key_norm.to(at::kFloat).contiguous();
  launch(Assign{input<int64_t>(names), input<float>(norms), batch, num_clusters, arguments.rows(),
                output<int64_t>(index), output<bool>(is_merged), output<int64_t>(slot), members, starts,
                workspace.at<int32_t>(rest_at)});
  const Tensor states = width > 0 && hidden.stride(2) != 1 ? hidden.contiguous() : hidden;
  with_scalar(hidden, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(MergeMeans<T>{input<T>(states), states.stride(0), states.stride(1), members, starts, batch, tokens, budget,
                         width, output<T>(merged)});
  });
  return {merged, index, is_merged, slot};
}

template <class Launcher>
std::vector<Tensor> gather_tokens(at::TensorList tensors, const Tensor& index) {
  GatherArguments arguments(tensors, index);
  const c10::DeviceGuard guard(index.device());
  const Launcher launch(index.device());
  for (const Gather& kernel : arguments.kernels()) launch(kernel);
  return arguments.results();
}

}  // namespace vitcop::glue
