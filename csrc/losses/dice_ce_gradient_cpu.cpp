// The gradient of softmax Dice + cross-entropy, and of any loss on the same sums, through blocks of pixels across all
// channels that stay in cache.
#include "losses/dice_ce.hpp"

#include <omp.h>

#include "losses/softmax_exponentials.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// As `exponentials`, with instead of d the sum over the other classes of e^q b, b the slope in P.
template <bool kOverlap, bool kSquared, int... k>
void weighted_exponentials(const SoftmaxBlock& s, std::int64_t c, Classes<k...>) {
  const std::int64_t stride = s.logits_stride, block = s.block;
  ConstFloats x = s.logits + c * stride, top = s.top, slopes = s.slopes[2] + c + 2;
  const std::int32_t* __restrict index = s.index;
  Floats out = s.exponentials + c * block, others = s.other, owns = s.own, sums = s.drop;
  FASTMTL_EACH_LANE(i, s.padded) {
    const float m = top[i];
    const std::int32_t y = index[i] - static_cast<std::int32_t>(c);
    float other = others[i], own = owns[i], sum = sums[i];
    const auto add = [&](int number, float slope) {
      const float e = exp_minus(m - x[number * stride + i]), rest = y == number ? 0.0f : e;
      out[number * block + i] = e;
      other += rest;
      own = y == number ? e : own;
      if (kOverlap) sum += (kSquared ? rest * rest : rest) * slope;
    };
    (add(k, slopes[k]), ...);
    others[i] = other, owns[i] = own, sums[i] = sum;
  }
}

// What the gradient is made of at each pixel, with u_c = a_c t_c + b_c p_c^(q-1), h_c the slope in the class's
// cross-entropy, and g_c = h_c ((1 - smoothing) t_c + smoothing / C):
//     dx_c = p_c (u_c + sum_k g_k - sum_k p_k u_k) - g_c
// extra = sum_k g_k - sum_k p_k u_k, cost = dx of the pixel's own class by way of 1 - p_y = other / sum.
template <bool kOverlap, bool kSquared>
void prepare_gradient(const SoftmaxBlock& s, float smoothing, float base, float per_class) {
  ConstFloats other = s.other, own = s.own, sums = s.drop, valid = s.valid;
  ConstFloats h = s.slopes[0] + 2, a = s.slopes[1] + 2, b = s.slopes[2] + 2;
  const std::int32_t* __restrict index = s.index;
  Floats inverse = s.inverse, extra = s.extra, at_class = s.cost;
  FASTMTL_EACH_LANE(i, s.padded) {
    const float r = valid[i] / (other[i] + own[i]), p = own[i] * r, rest = other[i] * r, all = h[index[i]];
    const float g = (1.0f - smoothing) * all;
    float common = g + base, value = p * base - g * rest - per_class * all;
    if (kOverlap) {
      const float u = a[index[i]] + (kSquared ? b[index[i]] * p : b[index[i]]);
      const float over_others = sums[i] * (kSquared ? r * r : r);
      common -= over_others + p * u;
      value += p * (u * rest - over_others);
    }
    inverse[i] = r, extra[i] = common, at_class[i] = value;
  }
}

template <bool kOverlap, bool kSquared>
void differentiate_class(const SoftmaxBlock& s, std::int64_t c, float per_class, Floats out) {
  ConstFloats e = s.exponentials + c * s.block, inverse = s.inverse, extra = s.extra, at_class = s.cost;
  const std::int32_t* __restrict index = s.index;
  const float b = s.slopes[2][c + 2], spread = per_class * s.slopes[0][c + 2];
  FASTMTL_EACH_LANE(i, s.padded) {
    const float p = e[i] * inverse[i];
    const float u = !kOverlap ? extra[i] : extra[i] + (kSquared ? b * p : b);
    const float value = p * u - spread;
    out[i] = index[i] == static_cast<std::int32_t>(c) ? at_class[i] : value;
  }
}

// The same with a target for every class: other is the whole sum, drop = sum_k u_k p_k, own = sum_k g_k.
void prepare_soft_gradient(const SoftmaxBlock& s, const DiceCeProblem& problem, float smoothing, float base) {
  ConstFloats other = s.other, valid = s.valid;
  Floats inverse = s.inverse, extra = s.extra;
  FASTMTL_EACH_LANE(i, s.padded) inverse[i] = valid[i] / other[i];
  fill(extra, s.padded, base);
  for (std::int64_t c = 0; c < problem.channels; ++c) {
    ConstFloats e = s.exponentials + c * s.block, t = s.soft + c * s.block;
    const float g = (1.0f - smoothing) * s.slopes[0][c + 2], a = s.slopes[1][c + 2], b = s.slopes[2][c + 2];
    FASTMTL_EACH_LANE(i, s.padded) {
      const float p = e[i] * inverse[i];
      extra[i] += g * t[i] - p * (a * t[i] + (problem.squared ? b * p : b));
    }
  }
}

void differentiate_soft_class(const SoftmaxBlock& s, bool squared, std::int64_t c, float smoothing, float per_class,
                              Floats out) {
  ConstFloats e = s.exponentials + c * s.block, t = s.soft + c * s.block, inverse = s.inverse, extra = s.extra;
  const float h = s.slopes[0][c + 2], g = (1.0f - smoothing) * h, a = s.slopes[1][c + 2], b = s.slopes[2][c + 2];
  FASTMTL_EACH_LANE(i, s.padded) {
    const float p = e[i] * inverse[i];
    out[i] = p * (extra[i] + a * t[i] + (squared ? b * p : b)) - g * t[i] - per_class * h;
  }
}

template <bool kOverlap, bool kSquared>
void differentiate_block(const DiceCeProblem& problem, const SoftmaxBlock& s, float smoothing, const Planes& gradient,
                         const SoftmaxRun& run) {
  const std::int64_t C = problem.channels;
  const float per_class = smoothing / static_cast<float>(C);
  float base = 0.0f;
  for (std::int64_t c = 0; c < C; ++c) base += per_class * s.slopes[0][c + 2];
  find_maximum(s, C);
  by_fours(C, [&](std::int64_t c, auto classes) { weighted_exponentials<kOverlap, kSquared>(s, c, classes); });
  if (problem.soft)
    prepare_soft_gradient(s, problem, smoothing, base);
  else
    prepare_gradient<kOverlap, kSquared>(s, smoothing, base, per_class);
  const bool direct = gradient.type == Element::float32 && run.stride(gradient) == 1 && s.whole;
  for (std::int64_t c = 0; c < C; ++c) {
    const std::int64_t at = run.start(gradient) + c * gradient.channel;
    float* out = direct ? static_cast<float*>(gradient.data) + at : s.top;
    if (problem.soft)
      differentiate_soft_class(s, problem.squared, c, smoothing, per_class, out);
    else
      differentiate_class<kOverlap, kSquared>(s, c, per_class, out);
    if (direct) continue;
    ConstFloats valid = s.valid;
    FASTMTL_EACH_LANE(i, s.padded) out[i] = valid[i] != 0.0f ? out[i] : 0.0f;  // not even a NaN slope
    store(gradient.type, out, gradient.data, at, run.stride(gradient), s.count);
  }
}

}  // namespace

void softmax_gradient(const DiceCeProblem& problem, const SoftmaxChunks& chunks, const Planes& grad,
                      const float* coefficients, float smoothing, const Planes& gradient, float* scratch,
                      std::int64_t scratch_size, int threads) {
  const std::int64_t units = problem.batch * chunks.count, C = problem.channels;
  const auto differentiate = !problem.overlap  ? differentiate_block<false, false>
                             : problem.squared ? differentiate_block<true, true>
                                               : differentiate_block<true, false>;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    SoftmaxBlock block(C, chunks.block, problem.soft ? 3 : 2, 3, scratch + omp_get_thread_num() * scratch_size);
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < units; ++unit) {
      const std::int64_t b = unit / chunks.count;
      const float go = static_cast<const float*>(grad.data)[b * grad.batch];
      for (int k = 0; k < 3; ++k) {
        block.slopes[k][0] = block.slopes[k][1] = 0.0f;
        for (std::int64_t c = 0; c < C; ++c)
          block.slopes[k][c + 2] = go * coefficients[(k * problem.batch + b) * C + c];
      }
      for_each_run(problem, chunks, unit, [&](const SoftmaxRun& run) {
        if (block.fill(problem, run)) return differentiate(problem, block, smoothing, gradient, run);
        fill(block.top, block.padded, 0.0f);
        for (std::int64_t c = 0; c < C; ++c)
          store(gradient.type, block.top, gradient.data, run.start(gradient) + c * gradient.channel,
                run.stride(gradient), block.count);
      });
    }
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
