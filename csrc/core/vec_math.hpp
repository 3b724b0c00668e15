// exp and log1p for loops the compiler vectorises: no branch, no table, no call, NaN in gives NaN out.
// Included by *_cpu.cpp alone.
#pragma once

#include "core/numbers.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {

constexpr float kNoExp = 86.9f;  // beyond it exp_minus is 0

// The bits of exp(x), n being x / ln(2) rounded to nearest. kExact takes ln(2) in two pieces; one is off by 1.9e-9.
template <bool kExact = true>
inline std::int32_t exp_bits(float x, int n) {
  const float k = static_cast<float>(n);
  // |r| <= ln(2) / 2 where it matters
  const float r = kExact ? fused(k, 2.12194440e-4f, fused(k, -0.693359375f, x)) : fused(k, -0.693147182f, x);
  const float r2 = r * r;
  const float high = fused(fused(1.38146023e-3f, r, 8.36871564e-3f), r2, fused(4.16683890e-2f, r, 1.66665211e-1f));
  const float q = fused(fused(high, r, 4.99999940e-1f), r2, r + 1.0f);
  return bits_of<std::int32_t>(q) + n * (1 << 23);  // the bits of q 2^n
}

// exp(-a) for a >= 0; exactly 0 above 86.9, just before the value stops being a normal float. Error: 1 ulp with FMA.
// If not kExact, it takes one operation less and adds a relative error of 2.8e-9 a. Needs FMA: without it k ln(2) would
// be rounded.
template <bool kExact = true>
inline float exp_minus(float a) {
  // NaN counts as small in the second comparison, to reach the result, and as large in the first, where only the
  // conversion to int needs a finite number.
  const float finite = a < kNoExp ? a : 0.0f;
  const int n = static_cast<int>(fused(finite, -1.44269504f, -0.5f));  // truncation of what is negative: to nearest
  return bits_of<float>(exp_bits<kExact>(-a, n) & -static_cast<std::int32_t>(!(a > kNoExp)));
}

// exp(x) for x <= 86.9; exactly 0 below -86.9. NaN is handled as in exp_minus. Error: 1 ulp with FMA.
inline float exp_within(float x) {
  constexpr float kLimit = -86.9f;
  const float finite = x > kLimit ? x : 0.0f;
  const int n = static_cast<int>(fused(finite, 1.44269504f, 128.5f)) - 128;  // truncation of what is positive
  return bits_of<float>(exp_bits(x, n) & -static_cast<std::int32_t>(!(x < kLimit)));
}

// log(1 + e) for 0 <= e <= 1: e times a minimax polynomial of degree 8. Error: 2 ulp.
inline float log1p_unit(float e) {
  const float e2 = e * e, e4 = e2 * e2;
  const float c67 = fused(5.36482455e-3f, e, -3.00657917e-2f), c45 = fused(7.92045370e-2f, e, -1.37538031e-1f);
  const float c23 = fused(1.91536546e-1f, e, -2.48571634e-1f), c01 = fused(3.33213240e-1f, e, -4.99996483e-1f);
  const float q = fused(fused(c67, e2, c45), e4, fused(c23, e2, c01));
  return fused(q, e2, e);
}

// log(1 + z) for 0 <= z < 2^60, by log1p_unit on the rest of 1 + z over its power of two: both parts are positive, so
// nothing cancels, and below 1 it is log1p_unit of z itself. Error: 2 ulp.
inline float log1p_positive(float z) {
  const float u = 1.0f + z;
  const std::int32_t n = (bits_of<std::int32_t>(u) >> 23) - 127;
  const float scaled = u * bits_of<float>((127 - n) * (1 << 23)) - 1.0f;  // a NaN has n = 128 and stays one
  const float rest = n == 0 ? z : scaled;
  return fused(static_cast<float>(n), 0.693147182f, log1p_unit(rest));
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
