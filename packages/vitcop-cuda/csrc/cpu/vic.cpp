// Visual Information Clustering (Algorithm 2) on the CPU.
//
// The distances are symmetric, so each pair is computed once: panels of rows against all tokens from the panel on, as
// matrix products of torch's, and each panel adds to the densities of its rows and of its columns. The distances are
// kept as float32, n * n, for the search for parents.
#include <cmath>

#include "cpu/ops.h"

namespace vitcop::cpu {
namespace {

// As on the device: see vic.h.
constexpr double kGramNoise = 1e-13;

// Rows of a panel. Small enough that the half below the diagonal is mostly left out, large enough for the product.
constexpr int64_t kPanel = 32;

// The clustering of one row, in phases. Rows come one after the other and share the memory: a row has panels enough for
// every thread, and what many rows would need at once falls out of the caches.
struct Clustering {
  int64_t n, width;
  float threshold;
  std::vector<double> centered;  // [n, d]
  std::vector<double> norms;     // [n], squared
  std::vector<double> partial;   // [panels, n], what each panel adds to the density of each token
  std::vector<float> distances;  // [n, n]
  std::vector<int32_t> parents;  // [n]
  // Of the row at hand.
  int64_t length, count;
  double scale;  // of squared distances, by the cutoff
  const float* positions;
  float *density, *distance, *importance;
  int64_t *centers, *labels;

  Clustering(int64_t n_, int64_t width_, float threshold_)
      : n(n_), width(width_), threshold(threshold_), centered(n * width), norms(n),
        partial(ceil_div(n, kPanel) * n), distances(n * n), parents(n) {}
};

// The numbers at hand as a matrix of torch's, of [rows, columns].
Tensor matrix(double* numbers, std::array<int64_t, 2> shape, std::array<int64_t, 2> strides) {
  return torch::stable::from_blob(numbers, shape, strides, torch::headeronly::DeviceType::CPU, Dtype::Double);
}

// Takes the mean off the row's valid features, and squares what is left.
template <class T>
void center(Clustering& c, const T* features) {
  constexpr int64_t kColumns = 128;
  torch::stable::parallel_for(0, ceil_div(c.width, kColumns), 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kColumns, columns = std::min(kColumns, c.width - first);
      double mean[kColumns] = {};
      for (int64_t i = 0; i < c.length; ++i) {
        for (int64_t x = 0; x < columns; ++x) mean[x] += widen(features[i * c.width + first + x]);
      }
      for (int64_t x = 0; x < columns; ++x) mean[x] /= static_cast<double>(std::max<int64_t>(c.length, 1));
      for (int64_t i = 0; i < c.length; ++i) {
        double* out = c.centered.data() + i * c.width + first;
        for (int64_t x = 0; x < columns; ++x) out[x] = widen(features[i * c.width + first + x]) - mean[x];
      }
    }
  });
  torch::stable::parallel_for(0, c.length, kPanel, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double* own = c.centered.data() + i * c.width;
      c.norms[i] = sum_side_by_side<double>(c.width, [own](int64_t x) { return own[x] * own[x]; });
    }
  });
}

// From products to squared distances, in place, and to distances in float32 on both sides of the diagonal.
void to_distances(Clustering& c, int64_t first, int64_t height, int64_t columns, double* panel) {
  for (int64_t i = 0; i < height; ++i) {
    double* line = panel + i * columns;
    const double norm = c.norms[first + i];
    const double* others = c.norms.data() + first;
    float* out = c.distances.data() + (first + i) * c.n + first;
    for (int64_t j = 0; j < columns; ++j) {
      const double both = norm + others[j], squared = both - 2 * line[j];
      line[j] = squared <= kGramNoise * both ? 0.0 : squared;
      out[j] = static_cast<float>(std::sqrt(line[j]));
    }
  }
  for (int64_t j = 0; j < columns; ++j) {
    float* out = c.distances.data() + (first + j) * c.n + first;
    for (int64_t i = 0; i < std::min(height, j); ++i) out[i] = c.distances[(first + i) * c.n + first + j];
  }
}

// Equation 2's terms of a panel: each pair counts for its row and, beyond the panel's own square, for its column.
void add_densities(Clustering& c, int64_t first, int64_t height, int64_t columns, double* panel) {
  for (int64_t x = 0; x < height * columns; ++x) panel[x] *= c.scale;
  const Tensor terms = matrix(panel, {1, height * columns}, {height * columns, 1});
  glue::call("aten::exp_", "", {&terms});
  double* sums = c.partial.data() + first / kPanel * c.n;
  std::fill_n(sums, c.n, 0.0);
  for (int64_t i = 0; i < height; ++i) {
    double* line = panel + i * columns;
    line[i] = 0;  // no token adds to its own density
    sums[first + i] += sum_side_by_side<double>(columns, [line](int64_t j) { return line[j]; });
    for (int64_t j = height; j < columns; ++j) sums[first + j] += line[j];
  }
}

void measure(Clustering& c) {
  for_each_task(ceil_div(c.length, kPanel), [&](int64_t task) {
    const int64_t first = task * kPanel, height = std::min(kPanel, c.length - first), columns = c.length - first;
    double* features = c.centered.data() + first * c.width;
    std::vector<double> panel(height * columns);
    const Tensor own = matrix(features, {height, c.width}, {c.width, 1});
    const Tensor all = matrix(features, {c.width, columns}, {1, c.width});
    const Tensor products = matrix(panel.data(), {height, columns}, {columns, 1});
    glue::call("aten::mm", "out", {&own, &all, &products});
    to_distances(c, first, height, columns, panel.data());
    add_densities(c, first, height, columns, panel.data());
  });
  for (int64_t i = 0; i < c.n; ++i) {
    double sum = 0;
    for (int64_t panel = 0; i < c.length && panel <= i / kPanel; ++panel) sum += c.partial[panel * c.n + i];
    c.density[i] = static_cast<float>(sum);
  }
}

// Equation 3: the nearest denser token within the spatial threshold, the lower index on ties.
void find_parents(Clustering& c) {
  torch::stable::parallel_for(0, c.n, kPanel, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* distances = c.distances.data() + i * c.n;
      float best = kInfinity;
      int32_t parent = -1;
      for (int64_t j = 0; i < c.length && j < c.length; ++j) {
        // The distance first: it is the test that fails most often.
        if (!(distances[j] < best)) continue;
        if (!(c.density[j] > c.density[i] || (c.density[j] == c.density[i] && j < i))) continue;
        const float down = c.positions[2 * i] - c.positions[2 * j];
        const float across = c.positions[2 * i + 1] - c.positions[2 * j + 1];
        if (!(down * down + across * across <= c.threshold)) continue;
        best = distances[j];
        parent = static_cast<int32_t>(j);
      }
      const bool is_valid = i < c.length;
      c.parents[i] = parent;
      c.distance[i] = is_valid ? best : 0.0f;
      c.importance[i] = !is_valid ? 0.0f : parent < 0 ? kInfinity : c.density[i] * best;
    }
  });
}

// The center that is nearest to a token in feature space, the lower label on ties.
int64_t nearest_center(const Clustering& c, int64_t i) {
  const float* distances = c.distances.data() + i * c.n;
  float best = kInfinity;
  int64_t label = 0;
  for (int64_t k = 0; k < c.count; ++k) {
    if (distances[c.centers[k]] < best) {
      best = distances[c.centers[k]];
      label = k;
    }
  }
  return label;
}

// The valid tokens in ascending order of their keys, the lower index on ties.
template <class F>
std::vector<int32_t> sorted_by(int64_t length, F key) {
  std::vector<uint64_t> keys(length);
  std::vector<int32_t> order(length), place(length);
  for (int64_t i = 0; i < length; ++i) keys[i] = key(i);
  count_by_key(Block{}, keys.data(), length, order.data(), place.data());
  return order;
}

// Chooses the centers, and gives every token the label that its chain of parents ends in.
void assign_labels(Clustering& c) {
  const auto falling = [](float value) { return uint64_t{descending(without_nan(value, -kInfinity))}; };
  const auto by_density = sorted_by(c.length, [&](int64_t i) { return falling(c.density[i]); });
  const auto by_importance =
      sorted_by(c.length, [&](int64_t i) { return falling(c.importance[i]) << 32 | falling(c.density[i]); });
  std::fill_n(c.labels, c.n, -1);
  for (int64_t k = 0; k < c.count; ++k) {
    c.centers[k] = by_importance[k];
    c.labels[c.centers[k]] = k;
  }
  for (const int32_t i : by_density) {  // parents, which are denser, come first
    if (c.labels[i] >= 0) continue;
    c.labels[i] = c.parents[i] < 0 ? nearest_center(c, i) : c.labels[c.parents[i]];
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> vic(const Tensor& features, const Tensor& positions,
                                                       int64_t num_centers, double cutoff_distance,
                                                       double spatial_threshold, const OptionalTensor& lengths,
                                                       const OptionalTensor& counts, const OptionalTensor& cutoffs) {
  glue::check_floating("features", features, 3, features);
  const int64_t batch = features.size(0), tokens = features.size(1), width = features.size(2);
  glue::check_floating("positions", positions, 3, features);
  glue::check_shape("positions", positions, {batch, tokens, 2});
  glue::check_range("num_centers", num_centers, 1, tokens);
  const glue::RowArguments arguments(features, tokens, num_centers, lengths, counts);
  check_rows(arguments.rows(), batch);
  const Tensor labels = glue::empty(features, {batch, tokens}, Dtype::Long);
  const Tensor centers = glue::empty(features, {batch, num_centers}, Dtype::Long);
  const Tensor density = glue::empty(features, {batch, tokens}, Dtype::Float);
  const Tensor distance = glue::empty(features, {batch, tokens}, Dtype::Float);
  const Tensor importance = glue::empty(features, {batch, tokens}, Dtype::Float);
  const Tensor dense = glue::packed(features), places = glue::packed(glue::as_dtype(positions, Dtype::Float));

  const glue::CutoffArguments cutoff(features, cutoff_distance, cutoffs);
  Clustering c(tokens, width, glue::squared_threshold(spatial_threshold));
  for (int64_t row = 0; row < batch; ++row) {
    c.length = arguments.rows().length(row);
    c.count = arguments.rows().count(row);
    c.scale = cutoff.cutoff().scale(row);
    c.positions = glue::input<float>(places) + row * tokens * 2;
    c.density = glue::output<float>(density) + row * tokens;
    c.distance = glue::output<float>(distance) + row * tokens;
    c.importance = glue::output<float>(importance) + row * tokens;
    c.labels = glue::output<int64_t>(labels) + row * tokens;
    c.centers = glue::output<int64_t>(centers) + row * num_centers;
    std::fill_n(c.centers, num_centers, tokens);
    glue::with_scalar(features, [&](auto tag) {
      using T = typename decltype(tag)::type;
      center(c, glue::input<T>(dense) + row * tokens * width);
    });
    measure(c);
    find_parents(c);
    assign_labels(c);
  }
  return {labels, centers, density, distance, importance};
}

}  // namespace vitcop::cpu
