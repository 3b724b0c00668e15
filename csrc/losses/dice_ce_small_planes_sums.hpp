// Sums of the segments of samples of few pixels, in float32: no segment has more than 31 additions.
// Included by *_cpu.cpp alone (see numbers.hpp for the namespace).
#pragma once

#include "losses/dice_ce.hpp"
#include "losses/dice_ce_block.hpp"
#include "losses/softmax_rows.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// Lanes run over a group of samples, class after class, or over the classes of one sample.
struct SmallPlaneSums {
  SoftmaxBlock s;
  float *x, *e, *soft;  // by rows: one pixel's classes
  float *sums, *pixels, *not_finite;
  std::int64_t row, stride;  // of one kind of sum, of one class
  bool wanted[kSoftmaxSums];

  SmallPlaneSums(const DiceCeProblem& problem, const SoftmaxChunks& chunks, float* scratch)
      : s(problem.channels, chunks.block,
          chunks.rows    ? 0
          : problem.soft ? 3
                         : 2,
          0, scratch) {
    const std::int64_t C = problem.channels;
    row = chunks.rows ? (C + kLanes - 1) / kLanes * kLanes : C * chunks.block, stride = chunks.rows ? 1 : chunks.block;
    x = scratch + 9 * chunks.block, e = x + row, soft = e + row, sums = soft + row;
    pixels = sums + kSoftmaxSums * row, not_finite = pixels + chunks.block;
    wanted[kIntersection] = wanted[kPrediction] = problem.overlap;
    wanted[kTarget] = wanted[kEntropy] = true;
    wanted[kSpread] = problem.spread, wanted[kHits] = wanted[kPredicted] = problem.counts;
  }

  float* at(int k, std::int64_t c) const { return sums + k * row + c * stride; }
  std::int64_t padded(std::int64_t count) const { return (count + kLanes - 1) / kLanes * kLanes; }

  // Both return how many pixels have a class number that does not exist.
  double add_across(const DiceCeProblem& problem, const SoftmaxChunks& chunks, std::int64_t unit) {
    double outside = 0.0;
    clear();
    for_each_run(problem, chunks, unit, [&](const SoftmaxRun& run) {
      if (!s.fill(problem, run)) return;
      if (!problem.soft) outside += static_cast<double>(s.outside);
      find_maximum(s, problem.channels);
      by_fours(problem.channels, [&](std::int64_t c, auto classes) { exponentials<true>(s, c, classes); });
      normalise(s);
      const float* __restrict valid = s.valid;
      float* __restrict number = pixels;
      FASTMTL_EACH_LANE(i, s.padded) number[i] += valid[i];
      for (std::int64_t c = 0; c < problem.channels; ++c)
        problem.squared ? add_class<true>(problem, c) : add_class<false>(problem, c);
      if (problem.counts) count_across(problem.channels);
    });
    return outside;
  }

  double add_rows(const DiceCeProblem& problem, std::int64_t b) {
    clear();
    const SoftmaxRun run = {b, 0, problem.pixels, false};
    if (!s.fill_classes(problem, run)) return 0.0;
    pixels[0] = s.pixels;
    for (std::int64_t i = 0; i < s.count; ++i)
      if (s.valid[i] != 0.0f) problem.squared ? add_row<true>(problem, b, i) : add_row<false>(problem, b, i);
    return problem.soft ? 0.0 : static_cast<double>(s.outside);
  }

 private:
  void clear() {
    for (int k = 0; k < kSoftmaxSums; ++k)
      if (wanted[k] || k <= kSpread) fill(sums + k * row, row, 0.0f);
    fill(pixels, s.block, 0.0f), fill(not_finite, s.block, 0.0f);
  }

  template <bool kSquared>
  void add_class(const DiceCeProblem& problem, std::int64_t c) {
    const float* __restrict exponentials = s.exponentials + c * s.block, * __restrict inverse = s.inverse;
    const float* __restrict cost = s.cost, * __restrict logits = s.logits + c * s.logits_stride;
    const float* __restrict top = s.top, * __restrict log_sum = s.extra, * __restrict valid = s.valid;
    const std::int32_t* __restrict index = s.index;
    float* __restrict I = at(kIntersection, c), * __restrict P = at(kPrediction, c);
    float* __restrict T = at(kTarget, c), * __restrict E = at(kEntropy, c), * __restrict S = at(kSpread, c);
    if (problem.soft) {
      const float* __restrict targets = s.soft + c * s.block;
      FASTMTL_EACH_LANE(i, s.padded) {
        const float p = exponentials[i] * inverse[i];
        const ClassTerms terms = soft_terms<kSquared>(p, targets[i], top[i] - logits[i] + log_sum[i]);
        I[i] += terms.intersection, P[i] += terms.prediction, T[i] += terms.target, E[i] += terms.entropy;
      }
    } else {
      FASTMTL_EACH_LANE(i, s.padded) {
        const float p = exponentials[i] * inverse[i];
        const ClassTerms terms = class_terms<true, kSquared>(p, index[i] == static_cast<std::int32_t>(c), cost[i]);
        I[i] += terms.intersection, P[i] += terms.prediction, T[i] += terms.target, E[i] += terms.entropy;
      }
    }
    if (wanted[kSpread])
      FASTMTL_EACH_LANE(i, s.padded) S[i] += valid[i] != 0.0f ? top[i] - logits[i] + log_sum[i] : 0.0f;
  }

  // The first of equal maxima; NaN is never the largest. Called last: it takes the rows of inverse and cost for itself.
  void count_across(std::int64_t channels) {
    const float* __restrict top = s.top, * __restrict valid = s.valid;
    const std::int32_t* __restrict index = s.index;
    float* __restrict chosen = s.inverse, * __restrict odd = s.cost, * __restrict strange = not_finite;
    fill(odd, s.padded, 0.0f);
    FASTMTL_EACH_LANE(i, s.padded) chosen[i] = valid[i] != 0.0f ? 0.0f : -1.0f;
    for (std::int64_t c = channels - 1; c >= 0; --c) {
      const float* __restrict logits = s.logits + c * s.logits_stride;
      const auto number = static_cast<float>(c);
      FASTMTL_EACH_LANE(i, s.padded) {
        chosen[i] = logits[i] == top[i] && valid[i] != 0.0f ? number : chosen[i];
        odd[i] = (bits_of<std::int32_t>(logits[i]) & 0x7f800000) == 0x7f800000 ? 1.0f : odd[i];
      }
    }
    FASTMTL_EACH_LANE(i, s.padded) strange[i] += valid[i] * odd[i];
    for (std::int64_t c = 0; c < channels; ++c) {
      float* __restrict hits = at(kHits, c), * __restrict predicted = at(kPredicted, c);
      const auto number = static_cast<float>(c);
      FASTMTL_EACH_LANE(i, s.padded) {
        const float here = chosen[i] == number ? 1.0f : 0.0f;
        predicted[i] += here;
        hits[i] += index[i] == static_cast<std::int32_t>(c) ? here : 0.0f;
      }
    }
  }

  template <bool kSquared>
  void add_row(const DiceCeProblem& problem, std::int64_t b, std::int64_t pixel) {
    const std::int64_t C = problem.channels;
    const std::int32_t y = s.index[pixel];
    const RowSoftmax of = softmax_row(problem, b, pixel, y, x, e);
    const float inverse = of.inverse, log_sum = of.log_sum, top = of.top;
    const float* __restrict exponentials = e, * __restrict logits = x;
    float* __restrict I = at(kIntersection, 0), * __restrict P = at(kPrediction, 0);
    float* __restrict T = at(kTarget, 0), * __restrict E = at(kEntropy, 0), * __restrict S = at(kSpread, 0);
    if (problem.soft) {
      load_row(problem.target, b, pixel, C, 0.0f, soft);
      const float* __restrict targets = soft;
      FASTMTL_EACH_LANE(c, row) {
        const float p = exponentials[c] * inverse;
        const ClassTerms terms = soft_terms<kSquared>(p, targets[c], top - logits[c] + log_sum);
        I[c] += terms.intersection, P[c] += terms.prediction, T[c] += terms.target, E[c] += terms.entropy;
      }
    } else {
      FASTMTL_EACH_LANE(c, row) P[c] += class_terms<true, kSquared>(exponentials[c] * inverse, false, 0.0f).prediction;
      if (y >= 0) I[y] += of.own * inverse, T[y] += 1.0f, E[y] += of.cost;
    }
    if (wanted[kSpread]) {
      FASTMTL_EACH_LANE(c, row) S[c] += top - logits[c] + log_sum;
      for (std::int64_t c = C; c < row; ++c) S[c] = 0.0f;
    }
    if (wanted[kHits]) count_row(C, y, top);
  }

  void count_row(std::int64_t channels, std::int32_t y, float top) {
    const float* __restrict logits = x;
    if (top != top) {  // NaN is never the largest
      top = -__builtin_inff();
      for (std::int64_t c = 0; c < channels; ++c) top = logits[c] > top ? logits[c] : top;
    }
    std::int32_t chosen = INT32_MAX, largest = 0;
    for (std::int32_t c = 0; c < static_cast<std::int32_t>(channels); ++c) {
      const std::int32_t here = c | (((logits[c] == top) - 1) & INT32_MAX);  // INT32_MAX where it is not
      const std::int32_t exponent = bits_of<std::int32_t>(logits[c]) & 0x7f800000;
      chosen = here < chosen ? here : chosen;
      largest = exponent > largest ? exponent : largest;
    }
    not_finite[0] += largest == 0x7f800000 ? 1.0f : 0.0f;
    if (chosen == INT32_MAX) chosen = 0;
    at(kPredicted, chosen)[0] += 1.0f;
    if (chosen == y) at(kHits, y)[0] += 1.0f;
  }
};

}  // namespace
}  // namespace FASTMTL_ISA
}  // namespace fastmtl
