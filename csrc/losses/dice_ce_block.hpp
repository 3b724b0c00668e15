// What softmax Dice + cross-entropy adds up of one class at one pixel, from p = e / sum.
// Included by *_cpu.cpp alone (see numbers.hpp for the namespace).
#pragma once

#include "core/numbers.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

struct ClassTerms {
  float intersection, prediction, target, entropy;
};

// `hit`: it is the pixel's class, with -log p of `cost`.
template <bool kOverlap, bool kSquared>
inline ClassTerms class_terms(float p, bool hit, float cost) {
  return {kOverlap && hit ? p : 0.0f, !kOverlap ? 0.0f : kSquared ? p * p : p, hit ? 1.0f : 0.0f, hit ? cost : 0.0f};
}

// t: the target's probability.
template <bool kSquared>
inline ClassTerms soft_terms(float p, float t, float cost) {
  return {p * t, kSquared ? p * p : p, kSquared ? t * t : t, t == 0.0f ? 0.0f : t * cost};
}

}  // namespace
}  // namespace FASTMTL_ISA
}  // namespace fastmtl
