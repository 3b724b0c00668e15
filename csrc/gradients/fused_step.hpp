// The end of a training step in one pass: combine, unscale, clip and AdamW (Adam, SGD) over a table of tensors.
#pragma once

#include <cstdint>

#include "core/element.hpp"
#include "core/isa.hpp"
#include "gradients/optimizer_rules.hpp"

namespace fastmtl {

// All tensors of one call have one dtype, float32 or float64 (`wide`), and are dense; a moment has its parameter's
// memory order, and so has a gradient.
struct Step {
  const Segment* segments;  // [n], those of a group next to each other
  std::int64_t n;
  const Group* groups;
  bool wide;
  // Rows [K, .] of gradients, with weights w [K] of the parameters' dtype (float32 for half rows); K may be 0.
  const void* J;
  Element row_type;
  std::int64_t K, row_stride;
  const void* w;
};

// sum += of squares of gradients: segments' `gradient` and `count` are read. Bit-equal over thread counts and
// instruction sets. False: out of memory.
//
// fused_step: every gradient times `factor`, then one step of its group's rule, and `step` counts on.
FASTMTL_FOR_EACH_ISA(
    bool sum_of_squares(const Segment* segments, std::int64_t n, bool wide, double* sum, int num_threads);
    void fused_step(const Step& problem, double factor, int num_threads);)

}  // namespace fastmtl
