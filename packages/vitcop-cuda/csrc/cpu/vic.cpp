// Visual Information Clustering (Algorithm 2) on the CPU.
//
// The distances are symmetric, so each pair is computed once: panels of rows against all tokens from the panel on, as
// matrix products of torch's, and each panel adds to the densities of its rows and of its columns. The distances are
// kept as float32, n * n, for the search for parents.
#include <ATen/ops/exp.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <cmath>

#include "cpu/ops.h"

namespace vitcop::cpu {
namespace {

// As on the device: see vic.h.
constexpr double kGramNoise = 1e-13;

// Rows of a panel. Small enough that the half below the diagonal is mostly left out, large enough for the product.
constexpr int64_t kPanel = 32;

// The clustering of one batch, in phases.
struct Clustering {
  int64_t batch, width;
  Rows rows;
  double cutoff;
  float threshold;
  const float* positions;
  float *density, *distance, *importance;
  int64_t *centers, *labels;
  std::vector<double> centered;   // [B, n, d]
  std::vector<double> norms;      // [B, n], squared
  std::vector<double> partial;    // [B, panels, n], what each panel adds to the density of each token
  std::vector<float> distances;   // [B, n, n]
  std::vector<int32_t> parents;   // [B, n]

  Clustering(int64_t batch_, int64_t width_, const Rows& rows_)
      : batch(batch_), width(width_), rows(rows_), centered(batch * n() * width), norms(batch * n()),
        partial(batch * panels() * n()), distances(batch * n() * n()), parents(batch * n()) {}

  int64_t n() const { return rows.tokens; }
  int64_t panels() const { return ceil_div(rows.tokens, kPanel); }
};

// Takes the mean off each row's valid features, and squares what is left.
template <class T>
void center(Clustering& c, const T* features) {
  constexpr int64_t kColumns = 128;
  const int64_t chunks = ceil_div(c.width, kColumns);
  at::parallel_for(0, c.batch * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / chunks, first = task % chunks * kColumns, length = c.rows.length(row);
      const int64_t columns = std::min(kColumns, c.width - first);
      const int64_t start = row * c.n() * c.width + first;
      double mean[kColumns] = {};
      for (int64_t i = 0; i < length; ++i) {
        for (int64_t x = 0; x < columns; ++x) mean[x] += widen(features[start + i * c.width + x]);
      }
      for (int64_t x = 0; x < columns; ++x) mean[x] /= static_cast<double>(std::max<int64_t>(length, 1));
      for (int64_t i = 0; i < length; ++i) {
        double* out = c.centered.data() + start + i * c.width;
        for (int64_t x = 0; x < columns; ++x) out[x] = widen(features[start + i * c.width + x]) - mean[x];
      }
    }
  });
  at::parallel_for(0, c.batch * c.n(), kPanel, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const double* own = c.centered.data() + token * c.width;
      c.norms[token] = sum_side_by_side<double>(c.width, [own](int64_t x) { return own[x] * own[x]; });
    }
  });
}

// From products to squared distances, in place, and to distances in float32 on both sides of the diagonal.
void to_distances(Clustering& c, int64_t row, int64_t first, int64_t height, int64_t columns, double* panel) {
  const double* norms = c.norms.data() + row * c.n();
  float* own = c.distances.data() + row * c.n() * c.n();
  for (int64_t i = 0; i < height; ++i) {
    double* line = panel + i * columns;
    const double norm = norms[first + i];
    const double* others = norms + first;
    float* out = own + (first + i) * c.n() + first;
    for (int64_t j = 0; j < columns; ++j) {
      const double both = norm + others[j], squared = both - 2 * line[j];
      line[j] = squared <= kGramNoise * both ? 0.0 : squared;
      out[j] = static_cast<float>(std::sqrt(line[j]));
    }
  }
  for (int64_t j = 0; j < columns; ++j) {
    float* out = own + (first + j) * c.n() + first;
    for (int64_t i = 0; i < std::min(height, j); ++i) out[i] = own[(first + i) * c.n() + first + j];
  }
}

// Equation 2's terms of a panel: each pair counts for its row and, beyond the panel's own square, for its column.
void add_densities(Clustering& c, int64_t row, int64_t first, int64_t height, int64_t columns, double* panel) {
  const double scale = -1.0 / (c.cutoff * c.cutoff);
  for (int64_t x = 0; x < height * columns; ++x) panel[x] *= scale;
  Tensor terms = at::from_blob(panel, {height * columns}, at::kDouble);
  at::exp_(terms);
  double* sums = c.partial.data() + (row * c.panels() + first / kPanel) * c.n();
  std::fill_n(sums, c.n(), 0.0);
  for (int64_t i = 0; i < height; ++i) {
    double* line = panel + i * columns;
    line[i] = 0;  // no token adds to its own density
    sums[first + i] += sum_side_by_side<double>(columns, [line](int64_t j) { return line[j]; });
    for (int64_t j = height; j < columns; ++j) sums[first + j] += line[j];
  }
}

void measure(Clustering& c) {
  for_each_task(c.batch * c.panels(), [&](int64_t task) {
    const int64_t row = task / c.panels(), first = task % c.panels() * kPanel, length = c.rows.length(row);
    if (first >= length) return;
    const int64_t height = std::min(kPanel, length - first), columns = length - first;
    double* features = c.centered.data() + (row * c.n() + first) * c.width;
    std::vector<double> panel(height * columns);
    Tensor products = at::from_blob(panel.data(), {height, columns}, at::kDouble);
    const Tensor own = at::from_blob(features, {height, c.width}, at::kDouble);
    const Tensor all = at::from_blob(features, {columns, c.width}, at::kDouble);
    at::mm_out(products, own, all.t());
    to_distances(c, row, first, height, columns, panel.data());
    add_densities(c, row, first, height, columns, panel.data());
  });
  for (int64_t row = 0; row < c.batch; ++row) {
    const int64_t length = c.rows.length(row);
    for (int64_t i = 0; i < c.n(); ++i) {
      double sum = 0;
      for (int64_t panel = 0; i < length && panel <= i / kPanel; ++panel) {
        sum += c.partial[(row * c.panels() + panel) * c.n() + i];
      }
      c.density[row * c.n() + i] = static_cast<float>(sum);
    }
  }
}

// Equation 3: the nearest denser token within the spatial threshold, the lower index on ties.
void find_parents(Clustering& c) {
  at::parallel_for(0, c.batch * c.n(), kPanel, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t row = token / c.n(), i = token % c.n(), length = c.rows.length(row);
      const float* density = c.density + row * c.n();
      const float* place = c.positions + row * c.n() * 2;
      const float* distances = c.distances.data() + token * c.n();
      float best = kInfinity;
      int32_t parent = -1;
      for (int64_t j = 0; i < length && j < length; ++j) {
        // The distance first: it is the test that fails most often.
        if (!(distances[j] < best)) continue;
        if (!(density[j] > density[i] || (density[j] == density[i] && j < i))) continue;
        const float down = place[2 * i] - place[2 * j], across = place[2 * i + 1] - place[2 * j + 1];
        if (!(down * down + across * across <= c.threshold)) continue;
        best = distances[j];
        parent = static_cast<int32_t>(j);
      }
      c.parents[token] = parent;
      c.distance[token] = i < length ? best : 0.0f;
      c.importance[token] = i >= length ? 0.0f : parent < 0 ? kInfinity : density[i] * best;
    }
  });
}

// The center of the row that is nearest to a token in feature space, the lower label on ties.
int64_t nearest_center(const Clustering& c, int64_t row, int64_t i) {
  const float* distances = c.distances.data() + (row * c.n() + i) * c.n();
  const int64_t* centers = c.centers + row * c.rows.most;
  float best = kInfinity;
  int64_t label = 0;
  for (int64_t k = 0; k < c.rows.count(row); ++k) {
    if (distances[centers[k]] < best) {
      best = distances[centers[k]];
      label = k;
    }
  }
  return label;
}

// Chooses a row's centers, and gives every token the label that its chain of parents ends in.
void assign_labels(Clustering& c, int64_t row) {
  const int64_t n = c.n(), length = c.rows.length(row), count = c.rows.count(row);
  const auto sort = [&](std::vector<int32_t>& order, auto key) {
    std::vector<uint64_t> keys(length);
    std::vector<int32_t> place(length);
    order.resize(length);
    for (int64_t i = 0; i < length; ++i) keys[i] = key(row * n + i);
    sort_by_key(Block{}, keys.data(), length, order.data(), place.data());
  };
  const auto descending_without_nan = [](float value) {
    return uint64_t{descending(without_nan(value, -kInfinity))};
  };
  std::vector<int32_t> by_density, by_importance;
  sort(by_density, [&](int64_t at) { return descending_without_nan(c.density[at]); });
  sort(by_importance, [&](int64_t at) {
    return descending_without_nan(c.importance[at]) << 32 | descending_without_nan(c.density[at]);
  });
  int64_t* centers = c.centers + row * c.rows.most;
  int64_t* labels = c.labels + row * n;
  std::fill_n(labels, n, -1);
  std::fill_n(centers, c.rows.most, n);
  for (int64_t k = 0; k < count; ++k) {
    centers[k] = by_importance[k];
    labels[centers[k]] = k;
  }
  for (const int32_t i : by_density) {  // parents, which are denser, come first
    if (labels[i] >= 0) continue;
    const int32_t parent = c.parents[row * n + i];
    labels[i] = parent < 0 ? nearest_center(c, row, i) : labels[parent];
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> vic(const Tensor& features, const Tensor& positions,
                                                       int64_t num_centers, double cutoff_distance,
                                                       double spatial_threshold, const OptionalTensor& lengths,
                                                       const OptionalTensor& counts) {
  glue::check_floating("features", features, 3, features);
  const int64_t batch = features.size(0), tokens = features.size(1), width = features.size(2);
  glue::check_floating("positions", positions, 3, features);
  glue::check_shape("positions", positions, {batch, tokens, 2});
  glue::check_range("num_centers", num_centers, 1, tokens);
  const glue::RowArguments arguments(features, tokens, num_centers, lengths, counts);
  check_rows(arguments.rows(), batch);
  const Tensor labels = glue::empty_like(features, {batch, tokens}, at::kLong);
  const Tensor centers = glue::empty_like(features, {batch, num_centers}, at::kLong);
  const Tensor density = glue::empty_like(features, {batch, tokens}, at::kFloat);
  const Tensor distance = glue::empty_like(features, {batch, tokens}, at::kFloat);
  const Tensor importance = glue::empty_like(features, {batch, tokens}, at::kFloat);
  const Tensor dense = features.contiguous(), places = positions.to(at::kFloat).contiguous();

  Clustering c(batch, width, arguments.rows());
  c.cutoff = cutoff_distance;
  c.threshold = glue::squared_threshold(spatial_threshold);
  c.positions = places.const_data_ptr<float>();
  c.density = glue::output<float>(density);
  c.distance = glue::output<float>(distance);
  c.importance = glue::output<float>(importance);
  c.centers = glue::output<int64_t>(centers);
  c.labels = glue::output<int64_t>(labels);
  glue::with_scalar(features, [&](auto tag) {
    using T = typename decltype(tag)::type;
    center(c, glue::input<T>(dense));
  });
  measure(c);
  find_parents(c);
  at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) assign_labels(c, row);
  });
  return {labels, centers, density, distance, importance};
}

}  // namespace vitcop::cpu
