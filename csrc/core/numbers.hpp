// Bits of numbers, half precision and the fused multiply-add: what every kernel file starts from.
//
// Included by *_cpu.cpp alone. Everything lives in the namespace of the instruction set, because the same inline
// function compiled for AVX-512 and for the baseline must not be merged by the linker.
#pragma once

#include <cstdint>

#include "core/isa.hpp"

// Over the elements of a block in whole vectors: the mask says that there is no remainder, the pragma that no row
// overlaps another, which the compiler would check for as many pairs of rows as there are, or give up.
#define FASTMTL_EACH_LANE(i, padded) \
  _Pragma("GCC ivdep") for (std::int64_t i = 0; i < ((padded) & -::fastmtl::kLanes); ++i)

// The same where a lane's number is compared with numbers of 32 bits, which 64 would leave no lanes for.
#define FASTMTL_EACH_NUMBERED_LANE(i, padded) \
  _Pragma("GCC ivdep") for (std::int32_t i = 0; i < static_cast<std::int32_t>((padded) & -::fastmtl::kLanes); ++i)

namespace fastmtl {
namespace FASTMTL_ISA {

// Rows that overlap no other row a function uses.
using ConstFloats = const float* __restrict;
using Floats = float* __restrict;

template <typename To, typename From>
inline To bits_of(From value) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To result;
  __builtin_memcpy(&result, &value, sizeof(To));
  return result;
}

// a * b + c, rounded once where the hardware does that; without it a call into libm would be far slower. Being explicit
// makes every loop do the same, and keeps -fassociative-math from merging the two steps of a range reduction
// (vec_math.hpp), which would cost several digits for large arguments.
inline float fused(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline double fused(double a, double b, double c) {
#if defined(__FP_FAST_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

struct Half {
  std::uint16_t bits;
};
struct BFloat {
  std::uint16_t bits;
};

template <typename T>
inline float to_float(T value) {
  return static_cast<float>(value);
}

inline float to_float(BFloat value) { return bits_of<float>(static_cast<std::uint32_t>(value.bits) << 16); }

// Integer arithmetic instead of F16C, so that every instruction set, Arm's too, vectorises the same lines.
inline float to_float(Half value) {
  const std::uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const float scaled = bits_of<float>(magnitude) * 0x1p112f;  // the exponent's bias goes from 15 to 127
  const std::uint32_t infinite = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return bits_of<float>(bits_of<std::uint32_t>(scaled) | infinite | (value.bits & 0x8000u) << 16);
}

template <typename T>
inline T from_float(float value) {
  return static_cast<T>(value);
}

template <>
inline BFloat from_float<BFloat>(float value) {
  const std::uint32_t bits = bits_of<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<std::uint16_t>(nan ? 0x7fc0u : rounded)};
}

template <>
inline Half from_float<Half>(float value) {
  const std::uint32_t all = bits_of<std::uint32_t>(value);
  const std::uint32_t bits = all & 0x7fffffffu;
  // Adding 0.5 aligns a subnormal half's last bit with the float's last bit, and the addition rounds to nearest even.
  const std::uint32_t subnormal = bits_of<std::uint32_t>(bits_of<float>(bits) + 0.5f) - 0x3f000000u;
  const std::uint32_t normal = (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13;
  std::uint32_t result = bits < 0x38800000u ? subnormal : normal;
  result = bits >= 0x47800000u ? 0x7c00u : result;
  result = bits > 0x7f800000u ? 0x7e00u : result;
  return {static_cast<std::uint16_t>(result | (all >> 16 & 0x8000u))};
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
