// The operators over the kernels of include/vitcop, for whatever launches them: a GPU's stream, or a host's threads.
//
// A Launcher is made for the device of a tensor, which is the current one while it lives. Called with kernels, it runs
// them one after the other.
#pragma once

#include <tuple>
#include <vector>

#include "glue/arguments.h"
#include "vitcop/cls_saliency.h"
#include "vitcop/cluster.h"
#include "vitcop/co_prune.h"
#include "vitcop/gather.h"
#include "vitcop/key_norm.h"
#include "vitcop/received_attention.h"
#include "vitcop/top_tokens.h"

namespace vitcop::glue {

template <class Launcher>
Tensor key_norm(const Tensor& keys) {
  check_floating("keys", keys, 4, keys);
  check_range("tokens", keys.size(2), 0, kMostTokens);
  const Launcher launch(keys);
  const Tensor norms = empty(keys, {keys.size(0), keys.size(2)}, Dtype::Float);
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
  const Launcher launch(keys);
  const Tensor query = as_dtype(query_cls, keys.scalar_type());
  const Tensor saliency = empty(keys, {batch, tokens}, Dtype::Float);
  const Tensor scores = empty(keys, {batch, heads, tokens}, Dtype::Float);
  with_scalar(keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(HeadScores<T>{input<T>(query), input<T>(keys), static_cast<float>(scale), batch, heads, tokens, width,
                         query.stride(0), query.stride(1), query.stride(2), keys.stride(0), keys.stride(1),
                         keys.stride(2), keys.stride(3), output<float>(scores)});
  });
  launch(SumHeads{input<float>(scores), batch, heads, tokens, output<float>(saliency)});
  return saliency;
}

template <class T>
Vectors<T> vectors(const Tensor& states) {
  return {input<T>(states),  states.size(3),    states.stride(0),
          states.stride(1), states.stride(2), states.stride(3)};
}

template <class Launcher>
Tensor received_attention(const Tensor& queries, const Tensor& keys, double scale, const OptionalTensor& lengths) {
  check_floating("keys", keys, 4, keys);
  check_floating("queries", queries, 4, keys);
  const int64_t batch = keys.size(0), heads = keys.size(1), tokens = keys.size(2), width = keys.size(3);
  check_shape("queries", queries, {batch, heads, tokens, width});
  const RowArguments arguments(keys, tokens, 0, lengths, std::nullopt);
  const Rows& rows = arguments.rows();
  const Launcher launch(keys);
  const Tensor asking = as_dtype(queries, keys.scalar_type());
  const Tensor mean = empty(keys, {batch, tokens}, Dtype::Float);
  Workspace workspace;
  const int64_t tops_at = workspace.reserve<float>(batch * heads * tokens);
  const int64_t sums_at = workspace.reserve<double>(batch * heads * tokens);
  const int64_t received_at = workspace.reserve<double>(batch * heads * tokens);
  workspace.allocate(keys);
  auto* tops = workspace.at<float>(tops_at);
  auto* sums = workspace.at<double>(sums_at);
  auto* received = workspace.at<double>(received_at);
  with_scalar(keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const ScoreTile<T> tile = {vectors<T>(asking), vectors<T>(keys), static_cast<float>(scale), batch, heads, rows};
    launch(QuerySums<T>{tile, tops, sums});
    launch(KeySums<T>{tile, tops, sums, received});
  });
  launch(MeanReceived{received, batch, heads, rows, output<float>(mean)});
  return mean;
}

template <class Launcher>
Tensor top_tokens(const Tensor& saliency, int64_t k, bool smallest, const OptionalTensor& lengths,
                  const OptionalTensor& counts) {
  check_floating("saliency", saliency, 2, saliency);
  const int64_t batch = saliency.size(0), tokens = saliency.size(1);
  check_range("k", k, 1, tokens);
  const RowArguments arguments(saliency, tokens, k, lengths, counts);
  const Launcher launch(saliency);
  const Tensor chosen = empty(saliency, {batch, k}, Dtype::Long);
  Workspace workspace;
  const int64_t keys = workspace.reserve<uint32_t>(batch * tokens);
  const int64_t order = workspace.reserve<int32_t>(batch * tokens);
  const int64_t place = workspace.reserve<int32_t>(batch * tokens);
  workspace.allocate(saliency);
  with_scalar(saliency, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(TopTokens<T>{input<T>(saliency), saliency.stride(0), saliency.stride(1), batch, arguments.rows(), smallest,
                        output<int64_t>(chosen), workspace.at<uint32_t>(keys), workspace.at<int32_t>(order),
                        workspace.at<int32_t>(place)});
  });
  return chosen;
}

using Clusters = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Launcher>
Clusters vic(const Tensor& features, const Tensor& positions, int64_t num_centers, double cutoff_distance,
             double spatial_threshold, const OptionalTensor& lengths, const OptionalTensor& counts,
             const OptionalTensor& cutoffs) {
  check_floating("features", features, 3, features);
  const int64_t batch = features.size(0), tokens = features.size(1), width = features.size(2);
  check_floating("positions", positions, 3, features);
  check_shape("positions", positions, {batch, tokens, 2});
  check_range("num_centers", num_centers, 1, tokens);
  const RowArguments arguments(features, tokens, num_centers, lengths, counts);
  const Rows& rows = arguments.rows();
  const CutoffArguments cutoff(features, cutoff_distance, cutoffs);
  const Launcher launch(features);
  const Tensor labels = empty(features, {batch, tokens}, Dtype::Long);
  const Tensor centers = empty(features, {batch, num_centers}, Dtype::Long);
  const Tensor density = empty(features, {batch, tokens}, Dtype::Float);
  const Tensor distance = empty(features, {batch, tokens}, Dtype::Float);
  const Tensor importance = empty(features, {batch, tokens}, Dtype::Float);

  Workspace workspace;
  const int64_t centered_at = workspace.reserve<double>(batch * tokens * width);
  const int64_t gram_at = workspace.reserve<double>(batch * tokens * tokens);
  const bool in_one = tokens <= kMostInOne;
  const int64_t diagonal_at = workspace.reserve<double>(in_one ? 0 : batch * tokens);
  const int64_t stored_at = workspace.reserve<float>(in_one ? batch * tokens * tokens : 0);
  const int64_t finished_at = workspace.reserve<int32_t>(in_one ? batch : 0);
  const int64_t parent_at = workspace.reserve<int32_t>(batch * tokens);
  const int64_t label_at = workspace.reserve<int32_t>(batch * tokens);
  const int64_t pointers_at = workspace.reserve<int32_t>(batch * tokens * 2);
  workspace.allocate(features);
  const Tensor dense = packed(features);
  const Tensor places = packed(as_dtype(positions, Dtype::Float));
  with_scalar(features, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(Center<T>{input<T>(dense), batch, width, rows, workspace.at<double>(centered_at),
                     in_one ? workspace.at<int32_t>(finished_at) : nullptr});
  });
  const int64_t row = tokens * width;
  const Tensor centered = workspace.doubles(centered_at, {batch, tokens, width}, {row, width, 1});
  const Tensor transposed = workspace.doubles(centered_at, {batch, width, tokens}, {row, 1, width});
  const Tensor gram = workspace.doubles(gram_at, {batch, tokens, tokens}, {tokens * tokens, tokens, 1});
  call("aten::bmm", "out", {&centered, &transposed, &gram});
  const AfterProduct rest = {input<double>(gram),
                             input<float>(places),
                             batch,
                             rows,
                             cutoff.cutoff(),
                             squared_threshold(spatial_threshold),
                             output<float>(density),
                             output<float>(distance),
                             output<float>(importance),
                             output<int64_t>(centers),
                             output<int64_t>(labels),
                             workspace.at<int32_t>(parent_at),
                             workspace.at<int32_t>(label_at),
                             workspace.at<int32_t>(pointers_at),
                             workspace.at<float>(stored_at),
                             workspace.at<int32_t>(finished_at),
                             workspace.at<double>(diagonal_at)};
  if (in_one) {
    launch(rest.in_one());
  } else {
    rest.in_parts(launch);
  }
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
  const Launcher launch(hidden);
  const Tensor merged = empty(hidden, {batch, budget, width}, hidden.scalar_type());
  const Tensor index = empty(hidden, {batch, budget}, Dtype::Long);
  const Tensor is_merged = empty(hidden, {batch, budget}, Dtype::Bool);
  const Tensor slot = empty(hidden, {batch, tokens}, Dtype::Long);

  Workspace workspace;
  const int64_t members_at = workspace.reserve<int32_t>(batch * tokens);
  const int64_t starts_at = workspace.reserve<int32_t>(batch * (budget + 1));
  const int64_t rest_at = workspace.reserve<int32_t>(batch * Assign::workspace_size(tokens, num_clusters));
  workspace.allocate(hidden);
  int32_t* members = workspace.at<int32_t>(members_at);
  int32_t* starts = workspace.at<int32_t>(starts_at);
  const Tensor names = packed(labels);
  const Tensor norms = packed(as_dtype(key_norm, Dtype::Float));
  launch(Assign{input<int64_t>(names), input<float>(norms), batch, num_clusters, arguments.rows(),
                output<int64_t>(index), output<bool>(is_merged), output<int64_t>(slot), members, starts,
                workspace.at<int32_t>(rest_at)});
  const Tensor states = width > 0 && hidden.stride(2) != 1 ? packed(hidden) : hidden;
  with_scalar(hidden, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(MergeMeans<T>{input<T>(states), states.stride(0), states.stride(1), members, starts, batch, tokens, budget,
                         width, output<T>(merged)});
  });
  return {merged, index, is_merged, slot};
}

template <class Launcher>
std::vector<Tensor> gather_tokens(const std::vector<Tensor>& tensors, const Tensor& index) {
  GatherArguments arguments(tensors, index);
  const Launcher launch(index);
  for (const Gather& kernel : arguments.kernels()) launch(kernel);
  return arguments.results();
}

}  // namespace vitcop::glue
