// Two passes over logits and targets, both through blocks that stay in L1: load as float, compute, sum or store.
// No std:: template here: the linker would keep one copy for all instruction sets, perhaps the AVX-512 one.
#include "dice_bce.hpp"

#include "sigmoid_block.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// Adds a block to the sums: float32 lanes inside the block (at most 32 additions a lane), float64 across blocks.
// Without kOverlap, I and P stay 0: a BCE alone needs no division.
template <bool kSquared, bool kWeighted, bool kOverlap>
void add_block(const Block& block, float pos_weight, DiceBceSums& sums) {
  float intersection = 0.0f, prediction = 0.0f, target = 0.0f, bce = 0.0f;
  const float minus_weight = -pos_weight, extra_weight = pos_weight - 1.0f;
  const float *logits = block.logits, *targets = block.target;
  for (std::int64_t i = 0; i < (block.padded & -kLanes); ++i) {  // the mask tells the compiler there is no remainder
    const float x = logits[i], t = targets[i];
    const Sigmoid s = kOverlap ? sigmoid(x) : Sigmoid{exp_minus(__builtin_fabsf(x)), 0.0f, 0.0f};
    const float slope = kWeighted ? (x >= 0.0f ? 1.0f - t : minus_weight * t) : (x >= 0.0f ? 1.0f : 0.0f) - t;
    const float linear = slope == 0.0f ? 0.0f : slope * x;  // an infinite logit on the right side costs 0, not NaN
    bce += linear + (kWeighted ? (1.0f + extra_weight * t) * log1p_unit(s.e) : log1p_unit(s.e));
    if (kOverlap) {
      intersection += s.p * t;
      prediction += kSquared ? s.p * s.p : s.p;
    }
    target += kSquared ? t * t : t;
  }
  sums.intersection += intersection;
  sums.prediction += prediction;
  sums.target += target;
  sums.bce += bce;
  sums.elements += static_cast<double>(block.elements());
}

// A second look at a block that is in L1 anyway, so that who asks for no counts pays nothing.
void count_block(const Block& block, DiceBceCounts& counts) {
  std::int32_t both = 0, predicted = 0, wanted = 0, non_finite = 0;
  const float *logits = block.logits, *targets = block.target;
  for (std::int64_t i = 0; i < block.count; ++i) {
    // A masked logit reads as -infinity: only `valid` knows it from one that diverged.
    const std::int32_t valid = !block.masked || block.valid[i] != 0.0f;
    const std::int32_t p = logits[i] > 0.0f, t = targets[i] >= 0.5f;
    both += p & t;
    predicted += p;
    wanted += t;
    non_finite += valid & ((bits_of<std::uint32_t>(logits[i]) & 0x7f800000u) == 0x7f800000u);
  }
  counts.true_positive += both;
  counts.false_positive += predicted - both;
  counts.false_negative += wanted - both;
  counts.non_finite += non_finite;
}

// values = grad * d loss / d logits of a block. slopes: of the loss in the BCE sum, in I, and q times that in P.
template <bool kSquared>
void differentiate_block(const Block& block, float pos_weight, float grad, const float slopes[3],
                         float* __restrict values) {
  const float of_bce = grad * slopes[0], of_intersection = grad * slopes[1], of_prediction = grad * slopes[2];
  const float *logits = block.logits, *targets = block.target;
  for (std::int64_t i = 0; i < (block.padded & -kLanes); ++i) {
    const float t = targets[i];
    const Sigmoid s = sigmoid(logits[i]);
    const float bce = (1.0f - t) * s.p - pos_weight * t * s.q;
    const float dice = of_intersection * t + (kSquared ? of_prediction * s.p : of_prediction);
    values[i] = of_bce * bce + dice * (s.p * s.q);
  }
}

float pos_weight_of(const DiceBceProblem& problem, std::int64_t b, std::int64_t c) {
  if (problem.pos_weight == nullptr) return 1.0f;
  return problem.pos_weight[b / problem.group_size * problem.channels + c];
}

}  // namespace

// partials [B, chunks, C], and counts of the same shape if not null: both written whole. I and P are 0 without
// `overlap`.
void dice_bce_sums(const DiceBceProblem& problem, const Chunks& chunks, bool overlap, DiceBceSums* partials,
                   DiceBceCounts* counts, int threads) {
  const std::int64_t units = problem.batch * chunks.count;
  const bool weighted = problem.pos_weight != nullptr;
  const auto add = !overlap          ? (weighted ? add_block<false, true, false> : add_block<false, false, false>)
                   : problem.squared ? (weighted ? add_block<true, true, true> : add_block<true, false, true>)
                                     : (weighted ? add_block<false, true, true> : add_block<false, false, true>);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t first = unit * problem.channels;
    for (std::int64_t c = 0; c < problem.channels; ++c) partials[first + c] = {0.0, 0.0, 0.0, 0.0, 0.0};
    if (counts != nullptr)
      for (std::int64_t c = 0; c < problem.channels; ++c) counts[first + c] = {0, 0, 0, 0};
    for_each_block(problem, chunks, unit, [&](const Block& block, std::int64_t b, std::int64_t c) {
      add(block, pos_weight_of(problem, b, c), partials[first + c]);
      if (counts != nullptr) count_block(block, counts[first + c]);
    });
  }
}

void dice_bce_gradient(const DiceBceProblem& problem, const Chunks& chunks, const Planes& grad,
                       const float* coefficients, const Planes& gradient, int threads) {
  const std::int64_t units = problem.batch * chunks.count, segments = problem.batch * problem.channels;
  const auto differentiate = problem.squared ? differentiate_block<true> : differentiate_block<false>;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit)
    write_blocks(problem, chunks, unit, gradient,
                 [&](const Block& block, std::int64_t b, std::int64_t c, float* values) {
                   const float* slope = coefficients + b * problem.channels + c;
                   const float slopes[3] = {slope[0], slope[segments], slope[2 * segments]};
                   const float go = static_cast<const float*>(grad.data)[b * grad.batch + c * grad.channel];
                   differentiate(block, pos_weight_of(problem, b, c), go, slopes, values);
                 });
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
