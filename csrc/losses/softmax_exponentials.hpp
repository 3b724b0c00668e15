// The softmax of a block, all its pixels at once, class by class.
//
// With m = max x and d = m - x >= 0: e = exp(-d), and of a pixel's class y the rest of the sum is kept apart: other =
// sum of e over the classes that are not y. Then 1 - p_y = other / sum and -log p_y = d_y + log(sum) lose no digit,
// however sure the network is. A pixel that takes part in nothing has inverse = 0, so that all of its p are 0.
// Included by *_cpu.cpp alone.
#pragma once

#include "core/vec_math.hpp"
#include "losses/softmax_block.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

template <int... k>
struct Classes {};

// step(c, Classes<0, 1, 2, 3>) for every four classes: what each pixel keeps is then loaded and stored a quarter as
// often.
template <typename Step>
inline void by_fours(std::int64_t channels, Step step) {
  std::int64_t c = 0;
  for (; c + 4 <= channels; c += 4) step(c, Classes<0, 1, 2, 3>());
  if (channels - c == 3) step(c, Classes<0, 1, 2>());
  if (channels - c == 2) step(c, Classes<0, 1>());
  if (channels - c == 1) step(c, Classes<0>());
}

inline void fill(Floats row, std::int64_t count, float value) {
  FASTMTL_EACH_LANE(i, count) row[i] = value;
}

template <int... k>
void maximum(const SoftmaxBlock& s, std::int64_t c, Classes<k...>) {
  const std::int64_t stride = s.logits_stride;
  ConstFloats x = s.logits + c * stride;
  Floats top = s.top;
  FASTMTL_EACH_LANE(i, s.padded) {
    float m = top[i];
    ((m = x[k * stride + i] > m ? x[k * stride + i] : m), ...);
    top[i] = m;
  }
}

// e of all classes, their sum but for the pixel's own class, and that one's e and d.
template <bool kStore, int... k>
void exponentials(const SoftmaxBlock& s, std::int64_t c, Classes<k...>) {
  const std::int64_t stride = s.logits_stride, block = s.block;
  ConstFloats x = s.logits + c * stride, top = s.top;
  const std::int32_t* __restrict index = s.index;
  Floats out = s.exponentials + c * block, others = s.other, owns = s.own, drops = s.drop;
  FASTMTL_EACH_LANE(i, s.padded) {
    const float m = top[i];
    const std::int32_t y = index[i] - static_cast<std::int32_t>(c);
    float other = others[i], own = owns[i], drop = drops[i];
    const auto add = [&](int number) {
      const float d = m - x[number * stride + i], e = exp_minus(d);
      if (kStore) out[number * block + i] = e;
      other += y == number ? 0.0f : e;
      own = y == number ? e : own;
      drop = y == number ? d : drop;
    };
    (add(k), ...);
    others[i] = other, owns[i] = own, drops[i] = drop;
  }
}

inline void find_maximum(const SoftmaxBlock& s, std::int64_t channels) {
  fill(s.top, s.padded, -__builtin_inff());
  by_fours(channels, [&](std::int64_t c, auto classes) { maximum(s, c, classes); });
  fill(s.other, s.padded, 0.0f), fill(s.own, s.padded, 0.0f), fill(s.drop, s.padded, 0.0f);
}

// inverse = 1 / sum of a valid pixel, extra = log(sum), cost = -log p_y.
inline void normalise(const SoftmaxBlock& s) {
  ConstFloats other = s.other, own = s.own, drop = s.drop, valid = s.valid;
  Floats inverse = s.inverse, log_sum = s.extra, cost = s.cost;
  FASTMTL_EACH_LANE(i, s.padded) {
    inverse[i] = valid[i] / (other[i] + own[i]);
    // The largest e is 1: where it is the own one, `other` is the rest of the sum.
    log_sum[i] = log1p_positive(own[i] == 1.0f ? other[i] : other[i] - 1.0f + own[i]);
    cost[i] = drop[i] + log_sum[i];
  }
}

}  // namespace
}  // namespace FASTMTL_ISA
}  // namespace fastmtl
