// log and powers for loops the compiler vectorises, as vec_math.hpp has exp and log1p.
#pragma once

#include "core/vec_math.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {

// log(v) of a positive normal number: v = 2^n (1 + f) with 1 + f between sqrt(1/2) and sqrt(2). Error: 2 ulp.
// Anything that is not positive and normal gives a number without meaning.
inline float log_normal(float v) {
  const std::uint32_t bits = bits_of<std::uint32_t>(v);
  const std::int32_t n = static_cast<std::int32_t>(bits - 0x3f3504f3u) >> 23;
  const float f = bits_of<float>(bits - (static_cast<std::uint32_t>(n) << 23)) - 1.0f;
  const float f2 = f * f, f4 = f2 * f2;
  const float c67 = fused(-7.63434768e-2f, f, 1.27615169e-1f), c45 = fused(-1.31602108e-1f, f, 1.42017677e-1f);
  const float c23 = fused(-1.66233554e-1f, f, 2.00012267e-1f), c01 = fused(-2.50008225e-1f, f, 3.33333313e-1f);
  const float high = fused(fused(c67, f2, c45), f4, fused(c23, f2, c01));
  const float tail = f2 * fused(high, f, -0.5f);
  const float k = static_cast<float>(n);
  return fused(k, 0.693359375f, f + fused(k, -2.12194440e-4f, tail));
}

// u^gamma for u from 0 to 1 and gamma > 0; 0 for what is 0 or, by rounding, just below; NaN for NaN. The bits are
// masked because GCC makes a branch of a choice here, and then vectorises nothing.
inline float power_unit(float u, float gamma) {
  const float minus_log = -gamma * log_normal(u);
  const float power = exp_minus(minus_log > 0.0f ? minus_log : 0.0f);  // u just above 1 is 1
  return bits_of<float>(bits_of<std::int32_t>(power) & -static_cast<std::int32_t>(u > 0.0f)) + 0.0f * u;
}

constexpr int kAny = -1;  // an exponent known only at run time

template <int kGamma>
inline float power(float u, float gamma) {
  if (kGamma == 0) return 1.0f;
  if (kGamma == 1) return u;
  if (kGamma == 2) return u * u;
  return power_unit(u, gamma);
}

// The instance of a template over kGamma that fits.
template <typename Function>
Function* pick(float gamma, Function* zero, Function* one, Function* two, Function* any) {
  return gamma == 0.0f ? zero : gamma == 1.0f ? one : gamma == 2.0f ? two : any;
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
