// PCGrad's weights of the K gradients, computed only from their Gram matrix.
#pragma once

#include <cstdint>

#include "core/isa.hpp"

namespace fastmtl {

// `G [K, K]`, `order [K, M]` (row i: tasks to project task i against; i itself is skipped), `w [K]`; K <= 64.
// False: `order` names a task that is not there, `w` is then not written.
FASTMTL_FOR_EACH_ISA(
    bool pcgrad(const double* G, const std::int64_t* order, std::int64_t K, std::int64_t M, bool mean, double* w);)

}  // namespace fastmtl
