#include "cpu/ops.h"

namespace vitcop::cpu {
namespace {

// Scores at hand at a time, by thread, and keys of a product: a panel of a few queries against all keys, made of products
// with some keys each. Panels fit into a core's cache; beside one, a thread takes the keys of one head.
constexpr int64_t kScores = 1 << 17, kMostQueries = 32, kKeys = 1024;

struct Attention {
  int64_t batch, heads, tokens, width;
  double scale;
  Rows rows;
  double* received;  // [B, H, n]
};

template <class T>
Tensor matrix(T* numbers, std::array<int64_t, 2> shape, std::array<int64_t, 2> strides) {
  constexpr Dtype dtype = std::is_same_v<T, double> ? Dtype::Double : Dtype::Float;
  return torch::stable::from_blob(numbers, shape, strides, torch::headeronly::DeviceType::CPU, dtype);
}

// Tokens of a head as float64 without gaps, times a factor.
template <class T>
void widen_tokens(const Tensor& states, int64_t row, int64_t head, int64_t first, int64_t count, double factor,
                  double* to) {
  const int64_t width = states.size(3), to_token = states.stride(2), to_next = states.stride(3);
  const T* own = glue::input<T>(states) + row * states.stride(0) + head * states.stride(1) + first * to_token;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t x = 0; x < width; ++x) to[i * width + x] = widen(own[i * to_token + x * to_next]) * factor;
  }
}

// The largest of some numbers, side by side as sums are: std::max_element looks at one after the other.
double largest(const double* numbers, int64_t count) {
  constexpr int64_t kLanes = 8;
  double lanes[kLanes];
  std::fill_n(lanes, kLanes, numbers[0]);
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = std::max(lanes[lane], numbers[j + lane]);
  }
  for (; j < count; ++j) lanes[0] = std::max(lanes[0], numbers[j]);
  return *std::max_element(lanes, lanes + kLanes);
}

// What a thread works in.
struct Panel {
  std::vector<double> queries, keys, scores;
  std::vector<float> weights;

  Panel(int64_t height, int64_t length, int64_t width)
      : queries(height * width),
        keys(length * width),
        scores(height * length),
        weights(height * length) {}
};

// Turns scores less the largest of each query into weights, and adds what they are of their query's sum. Exponentials
// are float32, which are twice as fast; their sums are float64.
void add_weights(Panel& panel, int64_t height, int64_t length, double* received) {
  float* weights = panel.weights.data();
  for (int64_t i = 0; i < height; ++i) {
    const double* line = panel.scores.data() + i * length;
    const double top = largest(line, length);
    for (int64_t j = 0; j < length; ++j) weights[i * length + j] = static_cast<float>(line[j] - top);
  }
  const Tensor all = matrix(weights, {1, height * length}, {height * length, 1});
  glue::call("aten::exp_", "", {&all});
  for (int64_t i = 0; i < height; ++i) {
    const float* line = weights + i * length;
    const double share = 1 / sum_side_by_side<double>(length, [line](int64_t j) { return double{line[j]}; });
    for (int64_t j = 0; j < length; ++j) received[j] += line[j] * share;
  }
}

// What one head of a row pays, to the sums of its tokens.
template <class T>
void add_head(const Attention& a, const Tensor& queries, const Tensor& keys, int64_t row, int64_t head) {
  const int64_t length = a.rows.length(row);
  double* received = a.received + (row * a.heads + head) * a.tokens;
  std::fill_n(received, a.tokens, 0.0);
  if (length == 0) return;
  const int64_t height = std::min(std::max<int64_t>(kScores / length, 1), std::min(kMostQueries, length));
  Panel panel(height, length, a.width);
  widen_tokens<T>(keys, row, head, 0, length, 1, panel.keys.data());
  for (int64_t first = 0; first < length; first += height) {
    const int64_t count = std::min(height, length - first);
    widen_tokens<T>(queries, row, head, first, count, a.scale, panel.queries.data());
    const Tensor asking = matrix(panel.queries.data(), {count, a.width}, {a.width, 1});
    for (int64_t key = 0; key < length; key += kKeys) {
      const int64_t columns = std::min(kKeys, length - key);
      const Tensor asked = matrix(panel.keys.data() + key * a.width, {a.width, columns}, {1, a.width});
      const Tensor products = matrix(panel.scores.data() + key, {count, columns}, {length, 1});
      glue::call("aten::mm", "out", {&asking, &asked, &products});
    }
    add_weights(panel, count, length, received);
  }
}

}  // namespace

Tensor received_attention(const Tensor& queries, const Tensor& keys, double scale, const OptionalTensor& lengths) {
  glue::check_floating("keys", keys, 4, keys);
  glue::check_floating("queries", queries, 4, keys);
  const int64_t batch = keys.size(0), heads = keys.size(1), tokens = keys.size(2), width = keys.size(3);
  glue::check_shape("queries", queries, {batch, heads, tokens, width});
  const glue::RowArguments arguments(keys, tokens, 0, lengths, std::nullopt);
  const Rows& rows = arguments.rows();
  check_rows(rows, batch);
  const Tensor asking = glue::as_dtype(queries, keys.scalar_type());
  const Tensor mean = glue::empty(keys, {batch, tokens}, Dtype::Float);
  std::vector<double> received(batch * heads * tokens);
  const Attention attention = {batch, heads, tokens, width, scale, rows, received.data()};
  glue::with_scalar(keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_each_task(batch * heads, [&](int64_t task) { add_head<T>(attention, asking, keys, task / heads, task % heads); });
  });
  float* out = glue::output<float>(mean);
  for (int64_t i = 0; i < batch * tokens; ++i) {
    const int64_t row = i / tokens, token = i % tokens, length = rows.length(row);
    double sum = 0;
    for (int64_t head = 0; head < heads; ++head) sum += received[(row * heads + head) * tokens + token];
    out[i] = token < length ? static_cast<float>(sum / static_cast<double>(heads * length)) : 0.0f;
  }
  return mean;
}

}  // namespace vitcop::cpu
