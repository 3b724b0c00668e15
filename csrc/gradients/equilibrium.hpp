// The positive solution of C y = r / y^p, which Nash-MTL and FairGrad ask for.
#pragma once

#include <cstdint>

namespace fastmtl {

// `C [K, K]` positive semidefinite, `r [K]` > 0, p > 0, `y [K]`; K <= 64. NaN where C or r is not finite.
void equilibrium(const double* C, const double* r, double p, std::int64_t K, double* y);

}  // namespace fastmtl
