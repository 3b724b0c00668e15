// Sums over logits and class numbers, through blocks of pixels across all channels that stay in cache.
#include "losses/dice_ce.hpp"

#include <omp.h>

#include "losses/dice_ce_block.hpp"
#include "losses/softmax_exponentials.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// Sums of one class of a block: float32 lanes inside the block, float64 across blocks.
template <bool kOverlap, bool kSquared>
void add_class(const SoftmaxBlock& s, std::int64_t channels, std::int64_t c, double* sums) {
  ConstFloats e = s.exponentials + c * s.block, inverse = s.inverse, cost = s.cost;
  const std::int32_t* __restrict index = s.index;
  float intersection = 0.0f, prediction = 0.0f, target = 0.0f, entropy = 0.0f;
  FASTMTL_EACH_LANE(i, s.padded) {
    const bool hit = index[i] == static_cast<std::int32_t>(c);
    const ClassTerms terms = class_terms<kOverlap, kSquared>(kOverlap ? e[i] * inverse[i] : 0.0f, hit, cost[i]);
    if (kOverlap) prediction += terms.prediction, intersection += terms.intersection;
    target += terms.target;
    entropy += terms.entropy;
  }
  sums[kIntersection * channels + c] += intersection;
  sums[kPrediction * channels + c] += prediction;
  sums[kTarget * channels + c] += target;
  sums[kEntropy * channels + c] += entropy;
}

template <bool kSquared>
void add_soft_class(const SoftmaxBlock& s, std::int64_t channels, std::int64_t c, double* sums) {
  ConstFloats e = s.exponentials + c * s.block, x = s.logits + c * s.logits_stride;
  ConstFloats targets = s.soft + c * s.block, inverse = s.inverse, top = s.top, log_sum = s.extra;
  float intersection = 0.0f, prediction = 0.0f, target = 0.0f, entropy = 0.0f;
  FASTMTL_EACH_LANE(i, s.padded) {
    const ClassTerms terms = soft_terms<kSquared>(e[i] * inverse[i], targets[i], top[i] - x[i] + log_sum[i]);
    prediction += terms.prediction;
    intersection += terms.intersection;
    target += terms.target;
    entropy += terms.entropy;
  }
  sums[kIntersection * channels + c] += intersection;
  sums[kPrediction * channels + c] += prediction;
  sums[kTarget * channels + c] += target;
  sums[kEntropy * channels + c] += entropy;
}

void add_spread(const SoftmaxBlock& s, std::int64_t channels, double* sums) {
  ConstFloats top = s.top, log_sum = s.extra, valid = s.valid;
  for (std::int64_t c = 0; c < channels; ++c) {
    ConstFloats x = s.logits + c * s.logits_stride;
    float spread = 0.0f;
    FASTMTL_EACH_LANE(i, s.padded) spread += valid[i] != 0.0f ? top[i] - x[i] + log_sum[i] : 0.0f;
    sums[kSpread * channels + c] += spread;
  }
}

// Hard predictions, the first of equal maxima (NaN is never the largest), and pixels with a logit that is NaN or infinite. Called last: it takes
// the row of inverse for itself.
void add_counts(const SoftmaxBlock& s, std::int64_t channels, double* sums) {
  ConstFloats top = s.top, valid = s.valid;
  const std::int32_t* __restrict index = s.index;
  Floats chosen = s.inverse, odd = s.cost;
  fill(chosen, s.padded, 0.0f), fill(odd, s.padded, 0.0f);
  for (std::int64_t c = channels - 1; c >= 0; --c) {
    ConstFloats x = s.logits + c * s.logits_stride;
    const auto number = static_cast<float>(c);
    FASTMTL_EACH_LANE(i, s.padded) {
      chosen[i] = x[i] == top[i] ? number : chosen[i];
      odd[i] = (bits_of<std::int32_t>(x[i]) & 0x7f800000) == 0x7f800000 ? 1.0f : odd[i];
    }
  }
  float not_finite = 0.0f;
  FASTMTL_EACH_LANE(i, s.padded) {
    not_finite += valid[i] * odd[i];
    chosen[i] = valid[i] != 0.0f ? chosen[i] : -1.0f;
  }
  sums[kSoftmaxSums * channels + kNotFinite] += not_finite;
  for (std::int64_t c = 0; c < channels; ++c) {
    const auto number = static_cast<float>(c);
    float hits = 0.0f, predicted = 0.0f;
    FASTMTL_EACH_LANE(i, s.padded) {
      const float here = chosen[i] == number ? 1.0f : 0.0f;
      predicted += here;
      hits += index[i] == static_cast<std::int32_t>(c) ? here : 0.0f;
    }
    sums[kHits * channels + c] += hits;
    sums[kPredicted * channels + c] += predicted;
  }
}

void add_block(const DiceCeProblem& problem, const SoftmaxBlock& s, double* sums) {
  const std::int64_t C = problem.channels;
  find_maximum(s, C);
  if (problem.overlap || problem.soft)
    by_fours(C, [&](std::int64_t c, auto classes) { exponentials<true>(s, c, classes); });
  else
    by_fours(C, [&](std::int64_t c, auto classes) { exponentials<false>(s, c, classes); });
  normalise(s);
  const auto add = problem.soft       ? (problem.squared ? add_soft_class<true> : add_soft_class<false>)
                   : !problem.overlap ? add_class<false, false>
                                      : (problem.squared ? add_class<true, true> : add_class<true, false>);
  for (std::int64_t c = 0; c < C; ++c) add(s, C, c, sums);
  if (problem.spread) add_spread(s, C, sums);
  if (problem.counts) add_counts(s, C, sums);
  sums[kSoftmaxSums * C + kPixels] += s.pixels;
  if (!problem.soft) sums[kSoftmaxSums * C + kOutside] += s.outside;
}

}  // namespace

// partials [B, chunks, stride], zeros at first.
void softmax_sums(const DiceCeProblem& problem, const SoftmaxChunks& chunks, double* partials, float* scratch,
                  std::int64_t scratch_size, int threads) {
  const std::int64_t units = problem.batch * chunks.count;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    SoftmaxBlock block(problem.channels, chunks.block, problem.soft ? 3 : 2, 3,
                       scratch + omp_get_thread_num() * scratch_size);
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < units; ++unit)
      for_each_run(problem, chunks, unit, [&](const SoftmaxRun& run) {
        if (block.fill(problem, run)) add_block(problem, block, partials + unit * softmax_sums_size(problem.channels));
      });
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
