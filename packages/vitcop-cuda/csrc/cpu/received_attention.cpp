#include "cpu/ops.h"

namespace vitcop::cpu {
namespace {

// Scores at hand at a time, by thread, and keys of a product: a panel of a few queries against all keys, made of products
// with some keys each. Panels fit into a core's cache, and what a thread takes does not grow with the tokens.
constexpr int64_t kScores = 1 << 17, kMostQueries = 32, kKeys = 1024;

struct Attention {
  int64_t batch, heads, tokens, width;
  double scale;
  Rows rows;
  double* received;  // [B, H, n]
};

Tensor matrix(double* numbers, std::array<int64_t, 2> shape, std::array<int64_t, 2> strides) {
  return torch::stable::from_blob(numbers, shape, strides, torch::headeronly::DeviceType::CPU, Dtype::Double);
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

// What a thread works in.
struct Panel {
  std::vector<double> queries, keys, scores;

  Panel(int64_t height, int64_t length, int64_t width)
      : queries(height * width), keys(std::min(kKeys, length) * width), scores(height * length) {}
};

// Turns scores less the largest of each query into weights, and adds what they are of their query's sum.
void add_weights(double* scores, int64_t height, int64_t length, double* received) {
  for (int64_t i = 0; i < height; ++i) {
    double* line = scores + i * length;
    const double top = *std::max_element(line, line + length);
    for (int64_t j = 0; j < length; ++j) line[j] -= top;
  }
  const Tensor all = matrix(scores, {1, height * length}, {height * length, 1});
  glue::call("aten::exp_", "", {&all});
  for (int64_t i = 0; i < height; ++i) {
    const double* line = scores + i * length;
    const double share = 1 / sum_side_by_side<double>(length, [line](int64_t j) { return line[j]; });
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
  for (int64_t first = 0; first < length; first += height) {
    const int64_t count = std::min(height, length - first);
    widen_tokens<T>(queries, row, head, first, count, a.scale, panel.queries.data());
    const Tensor asking = matrix(panel.queries.data(), {count, a.width}, {a.width, 1});
    for (int64_t key = 0; key < length; key += kKeys) {
      const int64_t columns = std::min(kKeys, length - key);
      // Of one product's keys the memory holds them from panel to panel.
      if (first == 0 || length > kKeys) widen_tokens<T>(keys, row, head, key, columns, 1, panel.keys.data());
      const Tensor asked = matrix(panel.keys.data(), {a.width, columns}, {1, a.width});
      const Tensor products = matrix(panel.scores.data() + key, {count, columns}, {length, 1});
      glue::call("aten::mm", "out", {&asking, &asked, &products});
    }
    add_weights(panel.scores.data(), count, length, received);
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
