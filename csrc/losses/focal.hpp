// Sigmoid focal loss on logits: one pass of sums forward, one elementwise pass backward.
// The definition is fastmtl/reference/focal.py; the formulas of the gradient are in focal_sigmoid_cpu.cpp.
#pragma once

#include <cstdint>

#include "core/isa.hpp"
#include "core/planes.hpp"

namespace fastmtl {

struct SigmoidFocalProblem : LossInputs {
  const float* factors;  // [2, channels] of positives and negatives, or nullptr
  float positive, negative, gamma;
};

enum class Reduction : int { none = 0, mean = 1, sum = 2 };

// A sum over valid elements, and how far their targets go.
struct FocalSums {
  double loss, elements;
  Distance farthest;
};

// A segment is a plane. loss [segments] or []; coefficients [segments]: the loss's slope in each segment's sum. False
// where some target is outside 0 to 1.
bool sigmoid_focal_forward(const SigmoidFocalProblem& problem, Reduction reduction, float* loss, float* coefficients,
                           int threads);

// gradient = grad * d loss / d logits, same shape as the logits. grad [batch, channels].
void sigmoid_focal_backward(const SigmoidFocalProblem& problem, const Planes& grad, const float* coefficients,
                            const Planes& gradient, int threads);

FASTMTL_FOR_EACH_ISA(
    void sigmoid_focal_sums(const SigmoidFocalProblem& problem, const Chunks& chunks, FocalSums* partials, int threads);
    void sigmoid_focal_gradient(const SigmoidFocalProblem& problem, const Chunks& chunks, const Planes& grad,
                                const float* coefficients, const Planes& gradient, int threads);
    void sigmoid_focal_small_plane_losses(const SigmoidFocalProblem& problem, float* loss, float* coefficients,
                                          FocalSums* sums, int threads);
    void sigmoid_focal_small_plane_gradient(const SigmoidFocalProblem& problem, const Planes& grad,
                                            const float* coefficients, const Planes& gradient, int threads);)

}  // namespace fastmtl
