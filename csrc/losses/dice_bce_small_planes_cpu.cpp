// Dice + BCE of planes of few pixels: vector lanes run over planes, so that what happens once per segment, the score
// and its slopes, is as fast as what happens once per element.
// No std:: template here: the linker would keep one copy for all instruction sets, perhaps the AVX-512 one.
#include "losses/dice_bce.hpp"

#include "losses/dice_bce_block.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// Of each plane of a group; of no more than 31 pixels, so float32 does.
struct GroupSums {
  alignas(64) float intersection[kBlock], prediction[kBlock], target[kBlock], bce[kBlock], elements[kBlock];
  alignas(64) float pos_weight[kBlock];
  alignas(64) Distance farthest[kBlock];
  std::int64_t first, count, padded;

  GroupSums(const DiceBceProblem& problem, std::int64_t unit) {
    Block shape(kNoLogit);
    first = unit * group_planes(problem);
    shape.start(problem.batch * problem.channels, first, group_planes(problem));
    count = shape.count, padded = shape.padded;
    float* const rows[] = {intersection, prediction, target, bce, elements};
    for (float* row : rows)
      FASTMTL_EACH_LANE(i, padded) row[i] = 0.0f;
    FASTMTL_EACH_LANE(i, padded) pos_weight[i] = 1.0f;
    FASTMTL_EACH_LANE(i, padded) farthest[i] = 0;
    if (problem.pos_weight != nullptr)
      spread_channels(problem.pos_weight, problem.channels, problem.group_size, first, count, pos_weight);
  }
};

template <bool kSquared, bool kWeighted, bool kOverlap>
void add_pixel(const Block& block, GroupSums& sums) {
  const float *logits = block.logits, *targets = block.target;
  FASTMTL_EACH_LANE(i, block.padded) {
    const DiceBceTerms terms = terms_of<kSquared, kWeighted, kOverlap>(logits[i], targets[i], sums.pos_weight[i]);
    if (kOverlap) {
      sums.intersection[i] += terms.intersection;
      sums.prediction[i] += terms.prediction;
    }
    sums.target[i] += terms.target;
    sums.bce[i] += terms.bce;
    sums.farthest[i] = farther(sums.farthest[i], distance_of(targets[i]));
  }
  block.add_elements(sums.elements);
}

using AddPixel = void (*)(const Block&, GroupSums&);

AddPixel add_pixel_of(const DiceBceProblem& problem, bool overlap) {
  const bool weighted = problem.pos_weight != nullptr;
  return !overlap          ? (weighted ? add_pixel<false, true, false> : add_pixel<false, false, false>)
         : problem.squared ? (weighted ? add_pixel<true, true, true> : add_pixel<true, false, true>)
                           : (weighted ? add_pixel<false, true, true> : add_pixel<false, false, true>);
}

void add_group(const DiceBceProblem& problem, std::int64_t unit, AddPixel add, GroupSums& sums) {
  for_each_pixel(problem, unit, kNoLogit, [&](const Block& block) { add(block, sums); });
  // An infinite pos_weight makes masked elements NaN.
  FASTMTL_EACH_LANE(i, sums.padded) sums.bce[i] = sums.elements[i] > 0.0f ? sums.bce[i] : 0.0f;
}

// Losses, where there is one for each segment, and coefficients [3, planes] of one group.
void write_segment(const DiceBceProblem& problem, const DiceBceOptions& options, const double scales[2],
                   const GroupSums& sums, float* loss, float* coefficients, DiceBceTotals& totals) {
  alignas(64) float weight[kBlock], own[kBlock], slopes[3][kBlock], dice[kBlock], counted[kBlock];
  const std::int64_t planes = problem.batch * problem.channels;
  const bool each = options.reduction == 0 || options.reduction == 2;  // its BCE is divided by its own elements
  const float of_bce = static_cast<float>(options.bce_weight * scales[0]);
  const float of_dice = static_cast<float>(options.dice_weight * scales[1]);
  FASTMTL_EACH_LANE(i, sums.padded) weight[i] = 1.0f;
  if (options.weight != nullptr)
    spread_channels(options.weight, problem.channels, problem.group_size, sums.first, sums.count, weight);
  const DiceOptions rules = options.dice;
  const float* __restrict I = sums.intersection, * __restrict P = sums.prediction, * __restrict T = sums.target;
  const float* __restrict entropy = sums.bce, * __restrict number_of = sums.elements;
  FASTMTL_EACH_LANE(i, sums.padded) {
    const DiceScore<float> score = dice_score(I[i], P[i], T[i], number_of[i], rules);
    const float share = of_dice * weight[i], over = number_of[i] > 1.0f ? number_of[i] : 1.0f;
    const float by = each ? of_bce / over : of_bce;
    own[i] = by * entropy[i] + share * score.loss;
    slopes[0][i] = by;
    slopes[1][i] = share * score.of_intersection;
    slopes[2][i] = share * score.of_prediction;
    dice[i] = weight[i] * score.loss;
    counted[i] = score.counted;
  }
  double total = 0.0, bce = 0.0, of_scores = 0.0, number = 0.0, elements = 0.0;
  std::int64_t implausible = 0;
  for (std::int64_t i = 0; i < sums.count; ++i) {
    total += static_cast<double>(own[i]), bce += static_cast<double>(sums.bce[i]);
    of_scores += static_cast<double>(dice[i]), number += static_cast<double>(counted[i]);
    elements += static_cast<double>(sums.elements[i]);
  }
  for (std::int64_t i = 0; i < sums.count; ++i) implausible += !plausible(sums.farthest[i]);
  totals = {total, bce, of_scores, number, elements, implausible};
  if (options.reduction == 0)
    for (std::int64_t i = 0; i < sums.count; ++i) loss[sums.first + i] = own[i];
  for (int k = 0; k < 3; ++k)
    for (std::int64_t i = 0; i < sums.count; ++i) coefficients[k * planes + sums.first + i] = slopes[k][i];
}

template <bool kSquared>
void differentiate_pixel(const Block& block, const float* pos_weight, const float (*slopes)[kBlock],
                         float* __restrict values) {
  const float *logits = block.logits, *targets = block.target;
  FASTMTL_EACH_LANE(i, block.padded)
    values[i] = derivative<kSquared>(logits[i], targets[i], pos_weight[i], slopes[0][i], slopes[1][i], slopes[2][i]);
}

}  // namespace

// loss [planes] with the reduction "none", coefficients [3, planes], totals [groups]. scales: of the two terms; what is
// left to divide by is the caller's to apply.
void dice_bce_small_planes_losses(const DiceBceProblem& problem, const DiceBceOptions& options, const double scales[2],
                                  float* loss, float* coefficients, DiceBceTotals* totals, int threads) {
  const std::int64_t units = groups_of(problem);
  const AddPixel add = add_pixel_of(problem, options.dice_weight != 0.0);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    GroupSums sums(problem, unit);
    add_group(problem, unit, add, sums);
    write_segment(problem, options, scales, sums, loss, coefficients, totals[unit]);
  }
}

// planes [B, C], written whole.
void dice_bce_small_planes_sums(const DiceBceProblem& problem, bool overlap, DiceBceSums* planes, int threads) {
  const std::int64_t units = groups_of(problem);
  const AddPixel add = add_pixel_of(problem, overlap);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    GroupSums sums(problem, unit);
    add_group(problem, unit, add, sums);
    for (std::int64_t i = 0; i < sums.count; ++i)
      planes[sums.first + i] = {sums.intersection[i], sums.prediction[i], sums.target[i],
                                sums.bce[i],          sums.elements[i],   sums.farthest[i]};
  }
}

void dice_bce_small_planes_gradient(const DiceBceProblem& problem, const Planes& grad, const float* coefficients,
                                    const Planes& gradient, int threads) {
  const std::int64_t units = groups_of(problem), planes = problem.batch * problem.channels;
  const auto differentiate = problem.squared ? differentiate_pixel<true> : differentiate_pixel<false>;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const GroupSums group(problem, unit);
    alignas(64) float go[kBlock], slopes[3][kBlock];
    load_across(grad, problem.channels, group.first, 0, group.count, go);
    for (int k = 0; k < 3; ++k) {
      for (std::int64_t i = 0; i < group.count; ++i) slopes[k][i] = go[i] * coefficients[k * planes + group.first + i];
      for (std::int64_t i = group.count; i < group.padded; ++i) slopes[k][i] = 0.0f;
    }
    write_pixels(problem, unit, gradient, kNoLogit,
                 [&](const Block& block, float* values) { differentiate(block, group.pos_weight, slopes, values); });
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
