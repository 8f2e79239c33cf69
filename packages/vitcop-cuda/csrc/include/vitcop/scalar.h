// The dtypes that operators take, by the bits that torch stores, and their conversion to and from float.
#pragma once

#include <cstring>

#include "vitcop/portable.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace vitcop {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

VITCOP_BOTH float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

VITCOP_BOTH uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

VITCOP_DEVICE double widen(double value) { return value; }
VITCOP_DEVICE float widen(float value) { return value; }
VITCOP_DEVICE float widen(BFloat16 value) { return float_of_bits(static_cast<uint32_t>(value.bits) << 16); }

VITCOP_DEVICE float widen(Half value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fu, mantissa = value.bits & 0x3ffu;
  if (exponent == 0) {  // subnormal: mantissa times 2^-24
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-08f;
    return float_of_bits(sign | bits_of_float(magnitude));
  }
  const uint32_t wide = exponent == 31 ? 0xffu : exponent + 112;
  return float_of_bits(sign | wide << 23 | mantissa << 13);
#endif
}

// Numbers that one 16-byte load brings. Lanes that share a token take them in turn, whether or not they can be loaded so:
// which lane adds what, and with it every bit, does not depend on where a tensor lies.
template <class T>
constexpr int kPacked = 16 / static_cast<int>(sizeof(T));

// Where the numbers of every token lie, [B, H, n, e] with any strides (in elements).
template <class T>
struct Vectors {
  const T* values;
  int64_t width;
  int64_t stride_batch, stride_head, stride_token, stride_element;

  VITCOP_DEVICE const T* at(int64_t row, int64_t head, int64_t token) const {
    return values + row * stride_batch + head * stride_head + token * stride_token;
  }

  // Whether every kPacked numbers from a multiple of it on lie in 16 aligned bytes.
  VITCOP_DEVICE bool are_packed() const {
    const int64_t strides = stride_batch | stride_head | stride_token | width;
    return stride_element == 1 && strides % kPacked<T> == 0 && reinterpret_cast<uintptr_t>(values) % 16 == 0;
  }

  VITCOP_BOTH int64_t packs() const { return ceil_div(width, kPacked<T>); }

  // The numbers of one pack of a token, 0 past the last.
  template <bool kIsPacked>
  VITCOP_DEVICE void load(const T* token, int64_t pack, T (&numbers)[kPacked<T>]) const {
    if constexpr (kIsPacked) {
#if defined(__CUDA_ARCH__)
      // By name: a copy of memory the compiler takes apart again. Nobody writes to keys while they are read.
      const uint4 words = __ldg(reinterpret_cast<const uint4*>(token + pack * kPacked<T>));
      memcpy(numbers, &words, sizeof words);
#else
      memcpy(numbers, token + pack * kPacked<T>, 16);
#endif
    } else {
      for (int k = 0; k < kPacked<T>; ++k) {
        const int64_t x = pack * kPacked<T> + k;
        numbers[k] = x < width ? token[x * stride_element] : T{};
      }
    }
  }
};

// Rounds to the nearest, halves to even. Through float from double, as torch does.
template <class T>
VITCOP_DEVICE T narrow(double value);

template <>
VITCOP_DEVICE double narrow<double>(double value) {
  return value;
}

template <>
VITCOP_DEVICE float narrow<float>(double value) {
  return static_cast<float>(value);
}

template <>
VITCOP_DEVICE BFloat16 narrow<BFloat16>(double value) {
  const uint32_t bits = bits_of_float(static_cast<float>(value));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};  // NaN stays NaN
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
VITCOP_DEVICE Half narrow<Half>(double value) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(static_cast<float>(value)))};
#else
  const uint32_t bits = bits_of_float(static_cast<float>(value));
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds beyond 65504
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 aligns the mantissa to steps of 2^-24 and rounds it
    const float aligned = float_of_bits(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (bits_of_float(aligned) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return {static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13)};
#endif
}

}  // namespace vitcop
