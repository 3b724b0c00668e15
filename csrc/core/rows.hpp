// How the kernels over J [K, P] read a row of any dtype.
// Included by *_cpu.cpp alone.
#pragma once

#include "core/element.hpp"
#include "core/numbers.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {

// float64 stays what it is; all else becomes float32.
template <typename T>
inline float widen(T x) {
  return to_float(x);
}
inline double widen(double x) { return x; }

// Calls body with a null pointer of the row's C++ type.
template <typename Body>
inline void with_row_type(Element type, Body body) {
  switch (type) {
    case Element::float16: return body(static_cast<const Half*>(nullptr));
    case Element::bfloat16: return body(static_cast<const BFloat*>(nullptr));
    case Element::float64: return body(static_cast<const double*>(nullptr));
    default: return body(static_cast<const float*>(nullptr));
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
