// out = sum_k w_k J_k, for J [K, P]: the combined gradient in one pass.
#pragma once

#include <cstdint>

#include "core/element.hpp"
#include "core/isa.hpp"

namespace fastmtl {

// `out [P]` is float32, or float64 for float64 rows; `w [K]` has out's dtype. Task 0 is added first.
FASTMTL_FOR_EACH_ISA(void combine(const void* J, Element type, std::int64_t K, std::int64_t P, std::int64_t row_stride,
                                  const void* w, void* out, int num_threads);)

}  // namespace fastmtl
