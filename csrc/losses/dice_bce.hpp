// Dice + BCE on logits: one pass of segment sums forward, one elementwise pass backward.
// The definition is fastmtl/reference/dice_bce.py; the formulas of the gradient are at the top of
// fastmtl/ops/losses/dice_bce.py.
#pragma once

#include <cstdint>

#include "core/isa.hpp"
#include "core/planes.hpp"
#include "losses/dice_score.hpp"

namespace fastmtl {

struct DiceBceProblem : LossInputs {
  const float* pos_weight;  // [channels] or [groups * channels] or nullptr
  std::int64_t group_size;  // samples that share a row of pos_weight and weight: batch / groups
  bool squared;
};

struct DiceBceOptions {
  const float* weight;  // [groups * channels] or nullptr
  double bce_weight, dice_weight;
  DiceOptions dice;
  bool over_batch;  // a segment is a channel of a whole group instead of a channel of a sample
  int reduction;    // 0: none; 1: mean; 2: sum; 3: total, a sum whose BCE is not divided by its elements
};

// Sums of one segment. `elements` are the valid ones.
struct DiceBceSums {
  double intersection, prediction, target, bce, elements;
  Distance farthest;  // of its targets
};

// What one segment holds at threshold 0.5; `non_finite` counts its valid logits that are NaN or infinite.
struct DiceBceCounts {
  std::int64_t true_positive, false_positive, false_negative, non_finite;
};

// loss [B, C], [C] or [] per group; coefficients [3, B, C]: the loss's slopes in each segment's BCE sum and I, and q
// times the one in P (q = 2 if squared, else 1); counts [4, B, C] or nullptr. False where some target
// is outside 0 to 1.
bool dice_bce_forward(const DiceBceProblem& problem, const DiceBceOptions& options, float* loss, float* coefficients,
                      std::int64_t* counts, int threads);

// Its second half: from partials [B, chunks, C] as dice_bce_sums writes them.
bool dice_bce_from_sums(const DiceBceProblem& problem, const DiceBceOptions& options, const Chunks& chunks,
                        const DiceBceSums* partials, float* loss, float* coefficients);

// The bare sums [5, B, C]: I, P, T, BCE, valid elements. False as above.
bool sigmoid_overlap_forward(const DiceBceProblem& problem, float* sums, int threads);

// What the reduction over all segments needs of some, each a plane of few pixels; `implausible` ones have a target
// outside 0 to 1.
struct DiceBceTotals {
  double loss, bce, dice, counted, elements;
  std::int64_t implausible;
};

// gradient = grad * d loss / d logits, same shape as the logits. grad's strides are 0 along what the loss averaged.
void dice_bce_backward(const DiceBceProblem& problem, const Planes& grad, const float* coefficients,
                       const Planes& gradient, int threads);

FASTMTL_FOR_EACH_ISA(
    void dice_bce_sums(const DiceBceProblem& problem, const Chunks& chunks, bool overlap, DiceBceSums* partials,
                       DiceBceCounts* counts, int threads);
    void dice_bce_gradient(const DiceBceProblem& problem, const Chunks& chunks, const Planes& grad,
                           const float* coefficients, const Planes& gradient, int threads);
    void dice_bce_small_planes_losses(const DiceBceProblem& problem, const DiceBceOptions& options,
                                      const double scales[2], float* loss, float* coefficients, DiceBceTotals* totals,
                                      int threads);
    void dice_bce_small_planes_sums(const DiceBceProblem& problem, bool overlap, DiceBceSums* planes, int threads);
    void dice_bce_small_planes_gradient(const DiceBceProblem& problem, const Planes& grad, const float* coefficients,
                                        const Planes& gradient, int threads);)

}  // namespace fastmtl
