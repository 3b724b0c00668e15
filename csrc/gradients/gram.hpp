// G = J J^T, float64, for J [K, P]: the inner products of K gradients in one pass over them.
#pragma once

#include <cstdint>

#include "core/element.hpp"
#include "core/isa.hpp"

namespace fastmtl {

// `G [K, K]` is written whole; with `norms_only`, `G [K]` gets the squared norms, bit-equal to the diagonal.
// Bit-equal over repeats, thread counts and (but for float64 rows) instruction sets. False: out of memory.
FASTMTL_FOR_EACH_ISA(bool gram(const void* J, Element type, std::int64_t K, std::int64_t P, std::int64_t row_stride,
                               bool norms_only, double* G, int num_threads);)

}  // namespace fastmtl
