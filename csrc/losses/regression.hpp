// Squared, absolute and smooth absolute errors with missing labels: one pass of sums per sample forward, one
// elementwise pass backward. The definition is fastmtl/reference/regression.py.
#pragma once

#include <cstdint>

#include "core/isa.hpp"
#include "core/planes.hpp"

namespace fastmtl {

enum class Error : int { squared = 0, absolute = 1, smooth = 2 };

struct RegressionProblem : LossInputs {  // its `logits` are the input
  Error error;
  float beta;  // of the smooth error: where it turns from squared to absolute
};

// Of one sample; `elements` are the valid ones.
struct RegressionSums {
  double error;
  std::int64_t elements;
};

// loss [B] or []; slopes [B]: of the loss in each sample's sum of errors. reduction 0: none; 1: mean; 2: sum.
void regression_forward(const RegressionProblem& problem, int reduction, float* loss, float* slopes, int threads);

// gradient = grad * d loss / d input, same shape as the input; grad has stride grad_stride, 0 for a scalar.
void regression_backward(const RegressionProblem& problem, const float* grad, std::int64_t grad_stride,
                         const float* slopes, const Planes& gradient, int threads);

FASTMTL_FOR_EACH_ISA(
    void regression_sums(const RegressionProblem& problem, const Chunks& chunks, RegressionSums* partials, int threads);
    void regression_gradient(const RegressionProblem& problem, const Chunks& chunks, const float* grad,
                             std::int64_t grad_stride, const float* slopes, const Planes& gradient, int threads);
    void regression_small_plane_losses(const RegressionProblem& problem, float* loss, float* slopes,
                                       RegressionSums* sums, int threads);
    void regression_small_plane_gradient(const RegressionProblem& problem, const float* grad, std::int64_t grad_stride,
                                         const float* slopes, const Planes& gradient, int threads);)

}  // namespace fastmtl
