// Squared, absolute and smooth absolute errors with missing labels: one pass of sums per sample forward, one
// elementwise pass backward. The definition is fastmtl/reference/regression.py.
#pragma once

#include <cstdint>

#include "isa.hpp"
#include "planes.hpp"

namespace fastmtl {

enum class Error : int { squared = 0, absolute = 1, smooth = 2 };

struct RegressionProblem {
  std::int64_t batch, channels, pixels;
  Planes input;   // float32, float16 or bfloat16
  Planes target;  // any type
  Planes mask;    // uint8 or bool, 0 = takes part in nothing; absent: every element counts
  Error error;
  float beta;  // of the smooth error: where it turns from squared to absolute
};

// Of one sample; `elements` are the valid ones.
struct RegressionSums {
  double error;
  std::int64_t elements;
};

// Pixels of a plane are summed in chunks of this many, so that no sum depends on the thread count.
constexpr std::int64_t kRegressionChunk = 16384;

// loss [B] or []; slopes [B]: of the loss in each sample's sum of errors. reduction 0: none; 1: mean; 2: sum.
void regression_forward(const RegressionProblem& problem, int reduction, float* loss, float* slopes, int threads);

// gradient = grad * d loss / d input, same shape as the input; grad lies grad_stride apart, 0 for a scalar.
void regression_backward(const RegressionProblem& problem, const float* grad, std::int64_t grad_stride,
                         const float* slopes, const Planes& gradient, int threads);

#define FASTMTL_DECLARE(isa)                                                                                     \
  namespace isa {                                                                                                \
  void regression_sums(const RegressionProblem& problem, RegressionSums* partials, int threads);                 \
  void regression_gradient(const RegressionProblem& problem, const float* grad, std::int64_t grad_stride,        \
                           const float* slopes, const Planes& gradient, int threads);                            \
  }
FASTMTL_FOR_EACH_ISA(FASTMTL_DECLARE)
#undef FASTMTL_DECLARE

}  // namespace fastmtl
