// The stable sigmoid: e = exp(-|x|), p = x >= 0 ? 1 / (1 + e) : e / (1 + e) and 1 - p the other way round: nothing
// cancels and nothing overflows. A logit of -infinity with target 0 adds exactly 0 to every sum, so masked elements and
// the padding of a last block are turned into that.
// Included by *_cpu.cpp alone.
#pragma once

#include "core/vec_math.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {

constexpr float kNoLogit = -__builtin_inff();

struct Sigmoid {
  float e, p, q;  // exp(-|x|), the probability, 1 - p
};

inline Sigmoid sigmoid(float x) {
  const float e = exp_minus(__builtin_fabsf(x));
  const float r = 1.0f / (1.0f + e);
  const float small = e * r;
  return {e, x >= 0.0f ? r : small, x >= 0.0f ? small : r};
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
