// Two passes over logits and targets, both through blocks that stay in L1: load as float, compute, sum or store.
#include "losses/dice_bce.hpp"

#include "losses/dice_bce_block.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// A second pass over a block that is in L1 anyway: callers without counts pay nothing.
void count_block(const Block& block, DiceBceCounts& counts) {
  std::int32_t both = 0, predicted = 0, wanted = 0, non_finite = 0;
  const float *logits = block.logits, *targets = block.target;
  for (std::int64_t i = 0; i < block.count; ++i) {
    // A masked logit reads as -infinity: only `valid` tells it from one that diverged.
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

}  // namespace

// partials [B, chunks, C], and counts of the same shape if not null: both written whole. I and P are 0 without
// `overlap`.
void dice_bce_sums(const DiceBceProblem& problem, const Chunks& chunks, bool overlap, DiceBceSums* partials,
                   DiceBceCounts* counts, int threads) {
  const std::int64_t units = problem.batch * chunks.count;
  const AddBlock add = add_block_of(problem, overlap);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t first = unit * problem.channels;
    for (std::int64_t c = 0; c < problem.channels; ++c) partials[first + c] = {0.0, 0.0, 0.0, 0.0, 0.0, 0};
    if (counts != nullptr)
      for (std::int64_t c = 0; c < problem.channels; ++c) counts[first + c] = {0, 0, 0, 0};
    for_each_block(problem, chunks, unit, kNoLogit, [&](const Block& block, std::int64_t b, std::int64_t c) {
      add(block, pos_weight_of(problem, b, c), partials[first + c]);
      if (counts != nullptr) count_block(block, counts[first + c]);
    });
  }
}

void dice_bce_gradient(const DiceBceProblem& problem, const Chunks& chunks, const Planes& grad,
                       const float* coefficients, const Planes& gradient, int threads) {
  const std::int64_t units = problem.batch * chunks.count, segments = problem.batch * problem.channels;
  const DifferentiateBlock differentiate = differentiate_block_of(problem);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit)
    write_blocks(problem, chunks, unit, gradient, kNoLogit,
                 [&](const Block& block, std::int64_t b, std::int64_t c, float* values) {
                   const float* slope = coefficients + b * problem.channels + c;
                   const float slopes[3] = {slope[0], slope[segments], slope[2 * segments]};
                   const float go = static_cast<const float*>(grad.data)[b * grad.batch + c * grad.channel];
                   differentiate(block, pos_weight_of(problem, b, c), go, slopes, values);
                 });
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
