// sum over k of w_k J_k at a few columns, task 0 first: what `combine` writes and `fused_step` uses, bit-equal.
//
// Included by *_exact_cpu.cpp alone: with relaxed flags, compilers add the tasks of a short run in another order.
#pragma once

#include "core/rows.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {

template <typename T, typename Sum>
inline void weighted_sum(const T* J, std::int64_t K, std::int64_t row_stride, const Sum* w, Sum* sum, std::int64_t n) {
  for (std::int64_t c = 0; c < n; ++c) sum[c] = w[0] * widen(J[c]);
  for (std::int64_t k = 1; k < K; ++k) {
    const T* row = J + k * row_stride;
    for (std::int64_t c = 0; c < n; ++c) sum[c] = fused(w[k], static_cast<Sum>(widen(row[c])), sum[c]);
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
