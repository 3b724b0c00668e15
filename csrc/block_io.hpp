// Moves runs of elements of any type and any stride between tensors and float buffers that stay in L1.
//
// The kernels' arithmetic then knows one type and one layout, so the number of element types multiplies no template.
// Included by *_cpu.cpp alone (see vec_math.hpp for the namespace).
#pragma once

#include <cstdint>

#include "element.hpp"
#include "vec_math.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {

struct Half { std::uint16_t bits; };
struct BFloat { std::uint16_t bits; };

template <typename T>
inline float to_float(T value) { return static_cast<float>(value); }

inline float to_float(BFloat value) { return bits_of<float>(static_cast<std::uint32_t>(value.bits) << 16); }

// Integer arithmetic instead of F16C, so that every instruction set, Arm's too, vectorises the same lines.
inline float to_float(Half value) {
  const std::uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const float scaled = bits_of<float>(magnitude) * 0x1p112f;  // the exponent's bias goes from 15 to 127
  const std::uint32_t infinite = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return bits_of<float>(bits_of<std::uint32_t>(scaled) | infinite | (value.bits & 0x8000u) << 16);
}

template <typename T>
inline T from_float(float value) { return static_cast<T>(value); }

template <>
inline BFloat from_float<BFloat>(float value) {
  const std::uint32_t bits = bits_of<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<std::uint16_t>(nan ? 0x7fc0u : rounded)};
}

template <>
inline Half from_float<Half>(float value) {
  const std::uint32_t all = bits_of<std::uint32_t>(value);
  const std::uint32_t bits = all & 0x7fffffffu;
  // Adding 0.5 aligns a subnormal half's last bit with the float's last bit, and the addition rounds to nearest even.
  const std::uint32_t subnormal = bits_of<std::uint32_t>(bits_of<float>(bits) + 0.5f) - 0x3f000000u;
  const std::uint32_t normal = (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13;
  std::uint32_t result = bits < 0x38800000u ? subnormal : normal;
  result = bits >= 0x47800000u ? 0x7c00u : result;
  result = bits > 0x7f800000u ? 0x7e00u : result;
  return {static_cast<std::uint16_t>(result | (all >> 16 & 0x8000u))};
}

template <typename T>
void load_as(const void* data, std::int64_t first, std::int64_t stride, std::int64_t count, float* out) {
  const T* source = static_cast<const T*>(data) + first;
  if (stride == 1) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = to_float(source[i]);
  } else {
    for (std::int64_t i = 0; i < count; ++i) out[i] = to_float(source[i * stride]);
  }
}

// out[i] = the element at first + i * stride, as float.
inline void load(Element type, const void* data, std::int64_t first, std::int64_t stride, std::int64_t count,
                 float* out) {
  switch (type) {
    case Element::float32: return load_as<float>(data, first, stride, count, out);
    case Element::float16: return load_as<Half>(data, first, stride, count, out);
    case Element::bfloat16: return load_as<BFloat>(data, first, stride, count, out);
    case Element::float64: return load_as<double>(data, first, stride, count, out);
    case Element::uint8: return load_as<std::uint8_t>(data, first, stride, count, out);
    case Element::boolean: return load_as<std::uint8_t>(data, first, stride, count, out);
    case Element::int16: return load_as<std::int16_t>(data, first, stride, count, out);
    case Element::int32: return load_as<std::int32_t>(data, first, stride, count, out);
    case Element::int64: return load_as<std::int64_t>(data, first, stride, count, out);
  }
}

template <typename T>
void store_as(const float* values, void* data, std::int64_t first, std::int64_t stride, std::int64_t count) {
  T* target = static_cast<T*>(data) + first;
  if (stride == 1) {
    for (std::int64_t i = 0; i < count; ++i) target[i] = from_float<T>(values[i]);
  } else {
    for (std::int64_t i = 0; i < count; ++i) target[i * stride] = from_float<T>(values[i]);
  }
}

// The element at first + i * stride = values[i], rounded to nearest even. Floating types of at most 32 bits.
inline void store(Element type, const float* values, void* data, std::int64_t first, std::int64_t stride,
                  std::int64_t count) {
  switch (type) {
    case Element::float16: return store_as<Half>(values, data, first, stride, count);
    case Element::bfloat16: return store_as<BFloat>(values, data, first, stride, count);
    default: return store_as<float>(values, data, first, stride, count);
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
