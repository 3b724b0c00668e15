// How the kernels over J [K, P] read a row of any dtype.
//
// Everything sits in an unnamed namespace: the file is compiled once per instruction set, and an inline function
// with one name and three bodies would let the linker hand the AVX-512 one to a processor without it.
#pragma once

#include <cstdint>
#include <cstring>

#include "element.hpp"

namespace fastmtl {
namespace {

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

inline float as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return as_float(std::uint32_t{x.bits} << 16); }
// Branch-free, so it vectorises without F16C: the exponent is moved by a product, exact for subnormals too.
inline float widen(Half x) {
  const std::uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  const std::uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinity or NaN
  std::uint32_t bits;
  const float scaled = as_float(magnitude) * 0x1p112f;
  std::memcpy(&bits, &scaled, sizeof bits);
  return as_float(bits | special | (std::uint32_t{x.bits} & 0x8000u) << 16);
}

// Calls body with a null pointer of the row's C++ type.
template <typename Body>
inline void with_row_type(Element type, Body body) {
  switch (type) {
    case Element::float16: return body(static_cast<const Half*>(nullptr));
    case Element::bfloat16: return body(static_cast<const BFloat16*>(nullptr));
    case Element::float64: return body(static_cast<const double*>(nullptr));
    default: return body(static_cast<const float*>(nullptr));
  }
}

}  // namespace
}  // namespace fastmtl
