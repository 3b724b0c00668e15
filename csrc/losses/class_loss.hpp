// Losses of a pixel's softmax and its class number alone: cross-entropy and softmax focal loss. With u = 1 - p_y and
// L = -log p_y a pixel's loss is
//     a_y u^gamma L                                                       focal
//     (1 - smoothing) a_y L + smoothing / C sum_c a_c (-log p_c)          cross-entropy: gamma = 0
// One number a sample is all that the backward needs; a sample that is one row of many classes keeps two more, so that
// the backward reads the row once. The definitions are fastmtl/reference/focal.py and dice_ce.py.
#pragma once

#include "core/isa.hpp"
#include "losses/softmax.hpp"

namespace fastmtl {

struct ClassLossProblem : SoftmaxProblem {
  const float* factors;    // a [channels] or nullptr
  float gamma, smoothing;  // one of them is 0
  bool by_weight;          // a mean divides by the sum of the pixels' a_y instead of by their number
};

// Which losses are added up, and what each sample's is divided by.
enum class ClassReduction : int { none = 0, mean = 1, sum = 2, total = 3, totals = 4 };  // the last two: by nothing

// Of one sample, or of a group of samples: `loss` times their slopes.
struct ClassLossSums {
  double loss, divisor, outside;
};

// Of each sample of one pixel: its largest logit and the sum of the other classes' e; 0 where it is not valid.
struct KeptRows {
  float *top, *other;  // [B], or null
};

// loss [B] or []; coefficients [B]: the loss's slope in each sample's sum. Returns how many pixels have a class number
// that does not exist.
std::int64_t class_loss_forward(const ClassLossProblem& problem, double factor, ClassReduction reduction, float* loss,
                                float* coefficients, const KeptRows& kept, int threads);

// gradient = grad * d loss / d logits, shaped as the logits; grad [B] has stride 0 where the loss is one number.
void class_loss_backward(const ClassLossProblem& problem, const Planes& grad, const float* coefficients,
                         const KeptRows& kept, const Planes& gradient, int threads);

// The threads' blocks and their memory.
struct ClassLossWork {
  SoftmaxChunks chunks;
  KeptRows kept;
  float* scratch;
  std::int64_t scratch_size;
  int threads;
};

FASTMTL_FOR_EACH_ISA(
    void class_loss_sums(const ClassLossProblem& problem, const ClassLossWork& work, ClassLossSums* sums);
    void class_losses(const ClassLossProblem& problem, const ClassLossWork& work, float factor, bool divided,
                      float* loss, float* coefficients, ClassLossSums* sums);
    void class_loss_gradient(const ClassLossProblem& problem, const ClassLossWork& work, const Planes& grad,
                             const float* coefficients, const Planes& gradient);)

}  // namespace fastmtl
