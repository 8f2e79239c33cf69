// torch as the kernels see it: the part whose binary interface is stable, so that one file runs with every torch from
// 2.11 on. What that part leaves out is written here over its C functions.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

// Since torch 2.13: what went wrong behind the last C function that failed. Null where torch is older.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace vitcop::glue {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = torch::headeronly::IntHeaderOnlyArrayRef;
using Dtype = torch::headeronly::ScalarType;

template <class... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// Raises ValueError in Python. The stable interface has no exceptions of its own, but torch's operators pass those of
// the standard library on, and an invalid argument is a ValueError there.
template <class... Parts>
[[noreturn]] __attribute__((noinline, cold)) void refuse(const Parts&... parts) {
  throw std::invalid_argument(joined(parts...));
}

// Raises RuntimeError where a C function failed. Before torch 2.13 its reason stands on the error stream alone.
template <class... Parts>
void require(AOTITorchError status, const Parts&... what) {
  if (status == 0) return;
  const char* reason = torch_exception_get_what_without_backtrace == nullptr
                           ? "torch printed the reason"
                           : torch_exception_get_what_without_backtrace();
  throw std::runtime_error(joined(what..., ": ", reason));
}

inline std::string shown(Shape shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

struct Device {
  int32_t type = 0, index = 0;

  explicit Device(const Tensor& tensor) {
    require(aoti_torch_get_device_type(tensor.get(), &type), "reading a tensor's device");
    require(aoti_torch_get_device_index(tensor.get(), &index), "reading a tensor's device");
  }

  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
  bool operator!=(const Device& other) const { return !(*this == other); }
};

inline std::string shown(const Device& device) {
  if (device.type == aoti_torch_device_type_cpu()) return "cpu";
  if (device.type == aoti_torch_device_type_meta()) return "meta";
  const bool is_cuda = device.type == aoti_torch_device_type_cuda();
  return (is_cuda ? "cuda:" : "device " + std::to_string(device.type) + ":") + std::to_string(device.index);
}

// An uninitialised tensor, contiguous, on the device of another.
inline Tensor empty(const Tensor& like, Shape shape, Dtype dtype) {
  constexpr size_t kMostDimensions = 64;
  std::array<int64_t, kMostDimensions> strides;
  if (shape.size() > strides.size()) refuse("tensors must have at most ", strides.size(), " dimensions");
  int64_t count = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = count;
    count *= shape[i] > 0 ? shape[i] : 1;
  }
  const Device device(like);
  AtenTensorHandle made = nullptr;
  const auto number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  const auto status = aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(), number,
                                               device.type, device.index, &made);
  if (status != 0) {
    require(status, "could not allocate ", count * aoti_torch_dtype_element_size(number), " bytes on ", shown(device));
  }
  return Tensor(made);
}

// The same memory in another shape.
inline Tensor view_of(const Tensor& memory, Shape shape, Shape strides, int64_t offset) {
  AtenTensorHandle made = nullptr;
  require(aoti_torch__reinterpret_tensor(memory.get(), static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                                         offset, &made),
          "making a view");
  return Tensor(made);
}

inline Tensor packed(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor as_dtype(const Tensor& tensor, Dtype dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// Calls an operator of torch's that takes tensors alone, the one that it writes to last.
inline void call(const char* name, const char* overload, std::initializer_list<const Tensor*> tensors) {
  std::array<StableIValue, 4> stack{};
  size_t count = 0;
  for (const Tensor* tensor : tensors) stack.at(count++) = torch::stable::detail::from(*tensor);
  require(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION), name);
  torch::stable::detail::to<Tensor>(stack[0]);  // the tensor written to, once more: its handle has to be freed
}

}  // namespace vitcop::glue
