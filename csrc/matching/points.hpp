// Bilinear samples of maps at points, and the way back: fastmtl/reference/points.py has the definition.
#pragma once

#include <cstdint>

#include "core/element.hpp"
#include "core/isa.hpp"

namespace fastmtl {

// Samples and gradients are float, or double if `is_double`, as the coordinates are.
struct PointsProblem {
  std::int64_t batch, channels, height, width, points;
  const void* coordinates;  // [batch, points, 2], contiguous
  bool is_double;
  int num_threads;
};

// `maps`: float32, float64, float16, bfloat16, uint8 or bool, with contiguous planes; `out` [batch, channels, points].
// `grad` [batch, channels, points]; `gradient` [batch, channels, height, width]: contiguous, overwritten.
FASTMTL_FOR_EACH_ISA(
    void sample_points(const PointsProblem& problem, const void* maps, Element type, std::int64_t batch_stride,
                       std::int64_t channel_stride, void* out);
    void scatter_points(const PointsProblem& problem, const void* grad, void* gradient);)

}  // namespace fastmtl
