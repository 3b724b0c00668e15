// Softmax Dice + cross-entropy: one pass of sums forward, one pass of gradients backward, from class numbers of any
// integer type. The definition is fastmtl/reference/dice_ce.py; the formulas of the gradient are at the top of
// fastmtl/ops/losses/dice_ce_backends.py. Also the sums alone, for ops.overlap_sums.
#pragma once

#include <cstdint>

#include "core/isa.hpp"
#include "losses/dice_score.hpp"
#include "losses/softmax.hpp"

namespace fastmtl {

struct DiceCeProblem : SoftmaxProblem {
  bool squared;  // P = sum p^2, T = sum t^2
  bool overlap;  // whether I and P are wanted
  bool spread;   // whether -sum log p of each class is wanted: label smoothing
  bool counts;   // whether hits, predictions and pixels that are not finite are
};

// What one pass adds up, [kSoftmaxSums, C], then per sample: valid pixels, those with a logit that is not finite, those
// whose class number is none of 0 to C - 1.
enum SoftmaxSum { kIntersection, kPrediction, kTarget, kEntropy, kSpread, kHits, kPredicted, kSoftmaxSums };
enum SampleSum { kPixels, kNotFinite, kOutside, kSampleSums };

constexpr std::int64_t softmax_sums_size(std::int64_t channels) { return kSoftmaxSums * channels + kSampleSums; }

struct DiceCeOptions {
  const float* weight;  // [channels] or nullptr
  double ce_weight, dice_weight, smoothing;
  bool background;  // whether channel 0 has a Dice term
  bool over_batch;  // a segment is a class of the batch instead of a class of a sample
  DiceOptions dice;
  int reduction;  // 0 none, 1 mean, 2 sum of none, 3 sum of the cross-entropies, 4 the same for each sample
};

// loss [B] or []; coefficients [3, B, C]: the loss's slopes in each segment's cross-entropy, in I, and q times the one
// in P (q = 2 if squared, else 1). counts [B, 3 C + 1] or nullptr: true and false positives, false negatives, pixels
// that are not finite. Returns how many pixels have a class number that does not exist.
std::int64_t dice_ce_forward(const DiceCeProblem& problem, const DiceCeOptions& options, float* loss,
                             float* coefficients, std::int64_t* counts, int threads);

// sums [5, B, C]: I, P, T, the cross-entropy by class, valid pixels. Returns as above.
std::int64_t softmax_overlap_forward(const DiceCeProblem& problem, float* sums, int threads);

// gradient = grad * d loss / d logits, shaped as the logits; grad [B] has stride 0 where the loss is one number.
void dice_ce_backward(const DiceCeProblem& problem, const Planes& grad, const float* coefficients, double smoothing,
                      const Planes& gradient, int threads);

// Samples of few pixels, each class of which is a segment (small_planes_chunks): where each thread keeps its blocks.
struct DiceCeSmallPlanesWork {
  SoftmaxChunks chunks;
  float* scratch;
  std::int64_t scratch_size;
  int threads;
};

// Rows of floats that a thread keeps: logits, exponentials, soft targets, sums or slopes, and what is one a sample.
constexpr std::int64_t kSmallPlaneRows = 3 + kSoftmaxSums + 1;

// What is wanted of them; nullptr: is not.
struct DiceCeSmallPlanesOutputs {
  float* loss;           // [B]
  float* coefficients;   // [3, B, C], as dice_ce_forward's
  std::int64_t* counts;  // [B, 3 C + 1]
  float* sums;           // [5, B, C], as softmax_overlap_forward's
  double* partials;      // [units, softmax_sums_size], zeros at first: all samples of a unit together
};

// Of the samples of a unit, what the reduction over all of them needs.
struct DiceCeSmallPlanesTotals {
  double loss, entropy, weights, dice, counted, outside;
};

FASTMTL_FOR_EACH_ISA(
    void softmax_sums(const DiceCeProblem& problem, const SoftmaxChunks& chunks, double* partials, float* scratch,
                      std::int64_t scratch_size, int threads);
    void softmax_gradient(const DiceCeProblem& problem, const SoftmaxChunks& chunks, const Planes& grad,
                          const float* coefficients, float smoothing, const Planes& gradient, float* scratch,
                          std::int64_t scratch_size, int threads);
    void dice_ce_small_planes(const DiceCeProblem& problem, const DiceCeOptions& options,
                              const DiceCeSmallPlanesWork& work, const double scales[2],
                              const DiceCeSmallPlanesOutputs& outputs, DiceCeSmallPlanesTotals* totals);
    void dice_ce_small_planes_gradient(const DiceCeProblem& problem, const DiceCeSmallPlanesWork& work,
                                       const Planes& grad, const float* coefficients, float smoothing,
                                       const Planes& gradient);)

}  // namespace fastmtl
