// Small convex quadratic programs over x >= 0.
#pragma once

#include <cstdint>

namespace fastmtl {

// For each of B problems: min over x >= 0 of x^T H x / 2 + q^T x. `H [B, K, K]`, `q [B, K]`, `x [B, K]`; K <= 64.
// NaN where H or q is not finite.
void nonnegative_qp(const double* H, const double* q, std::int64_t B, std::int64_t K, double* x);

}  // namespace fastmtl
