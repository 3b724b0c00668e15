// Dice + BCE of one element and of one block that stays in L1: sums and gradient, for every op built on them.
// Included by *_cpu.cpp alone.
#pragma once

#include "core/plane_block.hpp"
#include "core/sigmoid.hpp"
#include "losses/dice_bce.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {

// What one element adds to the sums.
struct DiceBceTerms {
  float intersection, prediction, target, bce;
};

// Without kOverlap, I and P stay 0: a BCE alone needs no division.
template <bool kSquared, bool kWeighted, bool kOverlap>
inline DiceBceTerms terms_of(float x, float t, float pos_weight) {
  const Sigmoid s = kOverlap ? sigmoid(x) : Sigmoid{exp_minus(__builtin_fabsf(x)), 0.0f, 0.0f};
  const float slope = kWeighted ? (x >= 0.0f ? 1.0f - t : -pos_weight * t) : (x >= 0.0f ? 1.0f : 0.0f) - t;
  const float linear = slope == 0.0f ? 0.0f : slope * x;  // an infinite logit on the right side costs 0, not NaN
  const float softplus = log1p_unit(s.e);
  return {kOverlap ? s.p * t : 0.0f, kOverlap ? (kSquared ? s.p * s.p : s.p) : 0.0f, kSquared ? t * t : t,
          linear + (kWeighted ? (1.0f + (pos_weight - 1.0f) * t) * softplus : softplus)};
}

// Adds a block to the sums: float32 lanes inside the block, float64 across blocks.
template <bool kSquared, bool kWeighted, bool kOverlap>
void add_block(const Block& block, float pos_weight, DiceBceSums& sums) {
  float intersection = 0.0f, prediction = 0.0f, target = 0.0f, bce = 0.0f;
  Distance farthest = 0;
  const float *logits = block.logits, *targets = block.target;
  for (std::int64_t i = 0; i < (block.padded & -kLanes); ++i) {  // the mask tells the compiler there is no remainder
    const DiceBceTerms terms = terms_of<kSquared, kWeighted, kOverlap>(logits[i], targets[i], pos_weight);
    intersection += terms.intersection;
    prediction += terms.prediction;
    target += terms.target;
    bce += terms.bce;
    farthest = farther(farthest, distance_of(targets[i]));
  }
  sums.intersection += intersection;
  sums.prediction += prediction;
  sums.target += target;
  const std::int64_t elements = block.elements();
  if (elements > 0) sums.bce += bce;  // an infinite pos_weight makes masked elements NaN
  sums.elements += static_cast<double>(elements);
  sums.farthest = farther(sums.farthest, farthest);
}

using AddBlock = void (*)(const Block&, float, DiceBceSums&);

// I and P stay 0 without `overlap`.
inline AddBlock add_block_of(const DiceBceProblem& problem, bool overlap) {
  const bool weighted = problem.pos_weight != nullptr;
  return !overlap          ? (weighted ? add_block<false, true, false> : add_block<false, false, false>)
         : problem.squared ? (weighted ? add_block<true, true, true> : add_block<true, false, true>)
                           : (weighted ? add_block<false, true, true> : add_block<false, false, true>);
}

// d loss / d logit of one element, from the loss's slopes in the BCE sum, in I, and q times that in P.
template <bool kSquared>
inline float derivative(float x, float t, float pos_weight, float of_bce, float of_intersection, float of_prediction) {
  const Sigmoid s = sigmoid(x);
  const float bce = (1.0f - t) * s.p - pos_weight * t * s.q;
  const float dice = of_intersection * t + (kSquared ? of_prediction * s.p : of_prediction);
  return of_bce * bce + dice * (s.p * s.q);
}

// values = grad * d loss / d logits of a block of one plane.
template <bool kSquared>
void differentiate_block(const Block& block, float pos_weight, float grad, const float slopes[3], Floats values) {
  const float of_bce = grad * slopes[0], of_intersection = grad * slopes[1], of_prediction = grad * slopes[2];
  const float *logits = block.logits, *targets = block.target;
  for (std::int64_t i = 0; i < (block.padded & -kLanes); ++i)
    values[i] = derivative<kSquared>(logits[i], targets[i], pos_weight, of_bce, of_intersection, of_prediction);
}

using DifferentiateBlock = void (*)(const Block&, float, float, const float[3], float*);

inline DifferentiateBlock differentiate_block_of(const DiceBceProblem& problem) {
  return problem.squared ? differentiate_block<true> : differentiate_block<false>;
}

inline float pos_weight_of(const DiceBceProblem& problem, std::int64_t b, std::int64_t c) {
  if (problem.pos_weight == nullptr) return 1.0f;
  return problem.pos_weight[b / problem.group_size * problem.channels + c];
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
