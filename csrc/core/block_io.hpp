// Moves runs of elements of any type and any stride between tensors and float buffers that stay in L1.
//
// The kernels' arithmetic then knows one type and one layout, so the number of element types multiplies no template.
// Included by *_cpu.cpp alone.
#pragma once

#include <cstdint>

#include "core/element.hpp"
#include "core/numbers.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {

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
