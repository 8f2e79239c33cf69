// What every backend checks before a kernel sees a pointer, and how tensors become pointers.
//
// The Python functions of vitcop-core say what is wrong in the words of their callers; these checks stand behind them,
// for whoever calls torch.ops.vitcop directly: a wrong shape must never become a wrong address.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <optional>
#include <vector>

#include "vitcop/gather.h"
#include "vitcop/rows.h"
#include "vitcop/scalar.h"

namespace vitcop::glue {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline void check_floating(const char* name, const Tensor& tensor, int64_t dimensions, const Tensor& like) {
  TORCH_CHECK_VALUE(tensor.dim() == dimensions, name, " must have ", dimensions, " dimensions; got ", tensor.dim());
  const auto dtype = tensor.scalar_type();
  const bool is_floating = dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kDouble;
  TORCH_CHECK_TYPE(is_floating, name, " must be float64, float32, float16 or bfloat16; got ", dtype);
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, " must be on ", like.device(), "; got ", tensor.device());
}

inline void check_shape(const char* name, const Tensor& tensor, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must be of shape ", shape, "; got ", tensor.sizes());
}

inline void check_integers(const char* name, const Tensor& tensor, at::IntArrayRef shape, const Tensor& like) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kLong, name, " must be int64; got ", tensor.scalar_type());
  check_shape(name, tensor, shape);
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, " must be on ", like.device(), "; got ", tensor.device());
}

inline void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  TORCH_CHECK_VALUE(low <= value && value <= high, name, " must be from ", low, " to ", high, "; got ", value);
}

// Tokens and outputs are numbered in 32 bits inside the kernels.
constexpr int64_t kMostTokens = int64_t{1} << 30;

// One integer a row, or none. Holds the contiguous tensors that the pointers of `rows` point into.
class RowArguments {
 public:
  RowArguments(const Tensor& like, int64_t tokens, int64_t most, const OptionalTensor& lengths,
               const OptionalTensor& counts) {
    check_range("tokens", tokens, 0, kMostTokens);
    rows_ = {pointer("lengths", lengths, like, lengths_), pointer("counts", counts, like, counts_), tokens, most};
  }

  const Rows& rows() const { return rows_; }

 private:
  static const int64_t* pointer(const char* name, const OptionalTensor& given, const Tensor& like, Tensor& held) {
    if (!given.has_value()) return nullptr;
    check_integers(name, *given, {like.size(0)}, like);
    held = given->contiguous();
    return held.const_data_ptr<int64_t>();
  }

  Tensor lengths_, counts_;
  Rows rows_;
};

template <class T>
struct Tag {
  using type = T;
};

// Calls f with the type that the tensor's bits are of.
template <class F>
void with_scalar(const Tensor& tensor, F f) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return f(Tag<double>{});
    case at::kFloat:
      return f(Tag<float>{});
    case at::kHalf:
      return f(Tag<Half>{});
    default:
      return f(Tag<BFloat16>{});
  }
}

template <class T>
const T* input(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* output(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline Tensor empty_like(const Tensor& like, at::IntArrayRef shape, at::ScalarType dtype) {
  return at::empty(shape, like.options().dtype(dtype));
}

// The bound on squared distances between positions, with a slack: positions such as 3/10 are not exact, and a pair at the
// threshold is near.
inline float squared_threshold(double spatial_threshold) {
  return static_cast<float>(spatial_threshold * spatial_threshold + 1e-6);
}

// What `gather_tokens` takes and gives: at most kMostGathered tensors in one launch.
class GatherArguments {
 public:
  GatherArguments(at::TensorList tensors, const Tensor& index) {
    TORCH_CHECK_VALUE(index.dim() == 2, "index must have 2 dimensions; got ", index.dim());
    check_integers("index", index, index.sizes(), index);
    TORCH_CHECK_VALUE(!tensors.empty(), "tensors must hold at least one tensor; got none");
    held_.push_back(index.contiguous());
    const int64_t batch = index.size(0), places = index.size(1);
    for (const Tensor& tensor : tensors) {
      TORCH_CHECK_VALUE(tensor.dim() >= 2 && (tensor.size(0) == batch || tensor.size(0) == 1), "tensors must be of shape [",
                        batch, " or 1, n, ...]; got ", tensor.sizes());
      TORCH_CHECK_VALUE(tensor.size(1) == tensors[0].size(1), "tensors must all have ", tensors[0].size(1),
                        " tokens; got ", tensor.size(1));
      TORCH_CHECK_VALUE(tensor.device() == index.device(), "tensors must be on ", index.device(), "; got ",
                        tensor.device());
      if (results_.size() % kMostGathered == 0) {
        Gather kernel = {};
        kernel.index = held_[0].const_data_ptr<int64_t>();
        kernel.batch = batch;
        kernel.places = places;
        kernel.tokens = tensor.size(1);
        kernels_.push_back(kernel);
      }
      kernels_.back().parts[kernels_.back().count++] = part(tensor, batch, places);
    }
  }

  const std::vector<Gather>& kernels() const { return kernels_; }
  const std::vector<Tensor>& results() const { return results_; }

 private:
  GatherPart part(const Tensor& tensor, int64_t batch, int64_t places) {
    // A token's own numbers must lie together; rows and tokens may lie anywhere.
    const bool is_dense = tensor.numel() == 0 || tensor.select(0, 0).select(0, 0).is_contiguous();
    const Tensor from = is_dense ? tensor : tensor.contiguous();
    std::vector<int64_t> shape = tensor.sizes().vec();
    shape[0] = batch;
    shape[1] = places;
    const Tensor to = empty_like(tensor, shape, tensor.scalar_type());
    held_.push_back(from);
    results_.push_back(to);
    const int64_t item = static_cast<int64_t>(tensor.element_size());
    int64_t bytes = item;
    for (size_t i = 2; i < shape.size(); ++i) bytes *= shape[i];
    const int64_t stride_batch = tensor.size(0) == 1 ? 0 : from.stride(0) * item;
    const int64_t stride_token = from.stride(1) * item;
    const auto* source = static_cast<const char*>(from.const_data_ptr());
    auto* target = static_cast<char*>(to.mutable_data_ptr());
    const auto bits = reinterpret_cast<uintptr_t>(source) | reinterpret_cast<uintptr_t>(target) |
                      static_cast<uintptr_t>(bytes | stride_batch | stride_token);
    return {source, target, bytes, stride_batch, stride_token, bits % 16 == 0};
  }

  std::vector<Tensor> held_, results_;
  std::vector<Gather> kernels_;
};

// The one workspace of an operator: first reserve, then allocate, then take in the same order.
class Workspace {
 public:
  // Returns where the array will start.
  template <class T>
  int64_t reserve(int64_t count) {
    const int64_t start = bytes_;
    bytes_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
    return start;
  }

  void allocate(const Tensor& like) { memory_ = empty_like(like, {bytes_}, at::kByte); }

  template <class T>
  T* at(int64_t start) const {
    return reinterpret_cast<T*>(static_cast<char*>(memory_.mutable_data_ptr()) + start);
  }

  Tensor doubles(int64_t start, at::IntArrayRef shape) const {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    return memory_.narrow(0, start, count * 8).view(at::kDouble).view(shape);
  }

 private:
  static constexpr int64_t kAlignment = 256;
  int64_t bytes_ = 0;
  Tensor memory_;
};

}  // namespace vitcop::glue
