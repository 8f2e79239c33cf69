// What every backend checks before a kernel sees a pointer, and how tensors become pointers.
//
// The Python functions of vitcop-core say what is wrong in the words of their callers; these checks stand behind them,
// for whoever calls torch.ops.vitcop directly: a wrong shape must never become a wrong address.
#pragma once

#include <optional>
#include <vector>

#include "glue/stable.h"
#include "vitcop/cutoff.h"
#include "vitcop/gather.h"
#include "vitcop/rows.h"
#include "vitcop/scalar.h"

namespace vitcop::glue {

inline void check_device(const char* name, const Tensor& tensor, const Tensor& like) {
  const Device own(tensor), wanted(like);
  if (own != wanted) refuse(name, " must be on ", shown(wanted), ", got ", shown(own));
}

inline void check_floating(const char* name, const Tensor& tensor, int64_t dimensions, const Tensor& like) {
  if (tensor.dim() != dimensions) refuse(name, " must have ", dimensions, " dimensions, got ", tensor.dim());
  const Dtype dtype = tensor.scalar_type();
  if (dtype != Dtype::Float && dtype != Dtype::Half && dtype != Dtype::BFloat16 && dtype != Dtype::Double) {
    refuse(name, " must be float64, float32, float16 or bfloat16, got ", dtype);
  }
  check_device(name, tensor, like);
}

inline void check_shape(const char* name, const Tensor& tensor, Shape shape) {
  if (!tensor.sizes().equals(shape)) refuse(name, " must be of shape ", shown(shape), ", got ", shown(tensor.sizes()));
}

inline void check_integers(const char* name, const Tensor& tensor, Shape shape, const Tensor& like) {
  if (tensor.scalar_type() != Dtype::Long) refuse(name, " must be int64, got ", tensor.scalar_type());
  check_shape(name, tensor, shape);
  check_device(name, tensor, like);
}

inline void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) refuse(name, " must be from ", low, " to ", high, ", got ", value);
}

template <class T>
const T* input(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* output(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
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
  static const int64_t* pointer(const char* name, const OptionalTensor& given, const Tensor& like,
                                OptionalTensor& held) {
    if (!given.has_value()) return nullptr;
    check_integers(name, *given, {like.size(0)}, like);
    held = packed(*given);
    return input<int64_t>(*held);
  }

  OptionalTensor lengths_, counts_;
  Rows rows_;
};

// The cutoff distance of vic, or one for each row, which take precedence. Holds the tensor that they lie in.
class CutoffArguments {
 public:
  CutoffArguments(const Tensor& like, double common, const OptionalTensor& given) : cutoff_{common, nullptr} {
    if (!given.has_value()) return;
    check_floating("cutoffs", *given, 1, like);
    check_shape("cutoffs", *given, {like.size(0)});
    held_ = packed(as_dtype(*given, Dtype::Float));
    cutoff_.rows = input<float>(*held_);
  }

  const Cutoff& cutoff() const { return cutoff_; }

 private:
  OptionalTensor held_;
  Cutoff cutoff_;
};

template <class T>
struct Tag {
  using type = T;
};

// Calls f with the type that the tensor's bits are of.
template <class F>
void with_scalar(const Tensor& tensor, F f) {
  switch (tensor.scalar_type()) {
    case Dtype::Double:
      return f(Tag<double>{});
    case Dtype::Float:
      return f(Tag<float>{});
    case Dtype::Half:
      return f(Tag<Half>{});
    default:
      return f(Tag<BFloat16>{});
  }
}

// The bound on squared distances between positions, with a slack: positions such as 3/10 are not exact, and a pair at the
// threshold is near.
inline float squared_threshold(double spatial_threshold) {
  return static_cast<float>(spatial_threshold * spatial_threshold + 1e-6);
}

// What `gather_tokens` takes and gives: at most kMostGathered tensors in one launch.
class GatherArguments {
 public:
  GatherArguments(const std::vector<Tensor>& tensors, const Tensor& index) {
    if (index.dim() != 2) refuse("index must have 2 dimensions, got ", index.dim());
    check_integers("index", index, index.sizes(), index);
    if (tensors.empty()) refuse("tensors must hold at least one tensor, got none");
    held_.push_back(packed(index));
    const int64_t batch = index.size(0), places = index.size(1);
    for (const Tensor& tensor : tensors) {
      if (tensor.dim() < 2 || (tensor.size(0) != batch && tensor.size(0) != 1)) {
        refuse("tensors must be of shape [", batch, " or 1, n, ...], got ", shown(tensor.sizes()));
      }
      if (tensor.size(1) != tensors[0].size(1)) {
        refuse("tensors must all have ", tensors[0].size(1), " tokens, got ", tensor.size(1));
      }
      check_device("tensors", tensor, index);
      if (results_.size() % kMostGathered == 0) {
        Gather kernel = {};
        kernel.index = input<int64_t>(held_[0]);
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
  // A token's own numbers must lie together; rows and tokens may lie anywhere.
  static bool has_dense_tokens(const Tensor& tensor) {
    int64_t expected = 1;
    for (int64_t i = tensor.dim() - 1; i >= 2; --i) {
      if (tensor.size(i) > 1 && tensor.stride(i) != expected) return tensor.numel() == 0;
      expected *= tensor.size(i);
    }
    return true;
  }

  GatherPart part(const Tensor& tensor, int64_t batch, int64_t places) {
    const Tensor from = has_dense_tokens(tensor) ? tensor : packed(tensor);
    std::vector<int64_t> shape = tensor.sizes().vec();
    shape[0] = batch;
    shape[1] = places;
    const Tensor to = empty(tensor, shape, tensor.scalar_type());
    held_.push_back(from);
    results_.push_back(to);
    const int64_t item = static_cast<int64_t>(tensor.element_size());
    int64_t bytes = item;
    for (size_t i = 2; i < shape.size(); ++i) bytes *= shape[i];
    const int64_t stride_batch = tensor.size(0) == 1 ? 0 : from.stride(0) * item;
    const int64_t stride_token = from.stride(1) * item;
    const auto* source = input<char>(from);
    auto* target = output<char>(to);
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

  void allocate(const Tensor& like) { memory_ = empty(like, {bytes_ / kDouble}, Dtype::Double); }

  template <class T>
  T* at(int64_t start) const {
    return reinterpret_cast<T*>(output<char>(*memory_) + start);
  }

  Tensor doubles(int64_t start, Shape shape, Shape strides) const {
    return view_of(*memory_, shape, strides, start / kDouble);
  }

 private:
  static constexpr int64_t kAlignment = 256, kDouble = sizeof(double);
  int64_t bytes_ = 0;
  OptionalTensor memory_;
};

}  // namespace vitcop::glue
