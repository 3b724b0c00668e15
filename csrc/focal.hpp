// Focal loss on logits, sigmoid and softmax: one pass of sums forward, one elementwise pass backward.
// The definition is fastmtl/reference/focal.py; the gradients' formulas stand at the top of fastmtl/ops/focal.py.
#pragma once

#include <cstdint>

#include "isa.hpp"
#include "planes.hpp"

namespace fastmtl {

struct SigmoidFocalProblem : LossInputs {
  const float* factors;  // [2, channels] of positives and negatives, or nullptr
  float positive, negative, gamma;
};

// `target` holds class numbers [batch, pixels]; of it and of the mask the channel stride is not read.
struct SoftmaxFocalProblem : LossInputs {
  const float* factors;  // [channels] or nullptr
  float gamma, ignore_index;
};

enum class Reduction : int { none = 0, mean = 1, sum = 2 };

// A sum over valid elements, or pixels. `implausible` grows with what is wrong with the target: the sum of targets
// (sigmoid), the number of classes out of range (softmax).
struct FocalSums {
  double loss, elements, implausible;
};

// A segment is a plane (sigmoid) or a sample (softmax). loss [segments] or []; coefficients [segments]: the loss's
// slope in each segment's sum. False where a segment's targets have a mean above 1, or a class number is out of range.
bool sigmoid_focal_forward(const SigmoidFocalProblem& problem, Reduction reduction, float* loss, float* coefficients,
                           int threads);
bool softmax_focal_forward(const SoftmaxFocalProblem& problem, Reduction reduction, float* loss, float* coefficients,
                           int threads);

// gradient = grad * d loss / d logits, same shape as the logits. grad [batch, channels] or, for softmax, [batch].
void sigmoid_focal_backward(const SigmoidFocalProblem& problem, const Planes& grad, const float* coefficients,
                            const Planes& gradient, int threads);
void softmax_focal_backward(const SoftmaxFocalProblem& problem, const Planes& grad, const float* coefficients,
                            const Planes& gradient, int threads);

// Softmax works on `pixels` pixels of all channels at a time: logits as float [channels, pixels] in `scratch`.
struct SoftmaxTile {
  std::int64_t pixels;
  float* scratch;  // [threads, channels * pixels]
};

#define FASTMTL_DECLARE(isa)                                                                                          \
  namespace isa {                                                                                                     \
  void sigmoid_focal_sums(const SigmoidFocalProblem& problem, const Chunks& chunks, FocalSums* partials, int threads); \
  void sigmoid_focal_gradient(const SigmoidFocalProblem& problem, const Chunks& chunks, const Planes& grad,           \
                              const float* coefficients, const Planes& gradient, int threads);                        \
  void sigmoid_focal_few_losses(const SigmoidFocalProblem& problem, float* loss, float* coefficients,                 \
                                FocalSums* sums, int threads);                                                        \
  void sigmoid_focal_few_gradient(const SigmoidFocalProblem& problem, const Planes& grad, const float* coefficients,  \
                                  const Planes& gradient, int threads);                                               \
  void softmax_focal_sums(const SoftmaxFocalProblem& problem, const Chunks& chunks, const SoftmaxTile& tile,          \
                          FocalSums* partials, int threads);                                                          \
  void softmax_focal_gradient(const SoftmaxFocalProblem& problem, const Chunks& chunks, const SoftmaxTile& tile,      \
                              const Planes& grad, const float* coefficients, const Planes& gradient, int threads);    \
  }
FASTMTL_FOR_EACH_ISA(FASTMTL_DECLARE)
#undef FASTMTL_DECLARE

}  // namespace fastmtl
