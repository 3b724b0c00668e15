// Two passes over logits and class numbers, both through blocks of pixels across all channels that stay in cache.
//
// With m = max x and d = m - x >= 0: e = exp(-d), and of a pixel's class y the rest of the sum is kept apart: other =
// sum of e over the classes that are not y. Then 1 - p_y = other / sum and -log p_y = d_y + log(sum) lose no digit,
// however sure the network is. A pixel that takes part in nothing has inverse = 0, so that all of its p are 0.
// No std:: template here: the linker would keep one copy for all instruction sets, perhaps the AVX-512 one.
#include "dice_ce.hpp"

#include <omp.h>

#include "softmax_block.hpp"
#include "vec_math.hpp"

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

inline void fill(float* __restrict row, std::int64_t count, float value) {
  FASTMTL_EACH_LANE(i, count) row[i] = value;
}

template <int... k>
void maximum(const SoftmaxBlock& s, std::int64_t c, Classes<k...>) {
  const std::int64_t stride = s.logits_stride;
  const float* __restrict x = s.logits + c * stride;
  float* __restrict top = s.top;
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
  const float *__restrict x = s.logits + c * stride, *__restrict top = s.top;
  const std::int32_t* __restrict index = s.index;
  float* __restrict out = s.exponentials + c * block;
  float *__restrict others = s.other, *__restrict owns = s.own, *__restrict drops = s.drop;
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

// The same for the gradient: instead of d the sum over the other classes of e^q b, b the slope in P.
template <bool kOverlap, bool kSquared, int... k>
void weighted_exponentials(const SoftmaxBlock& s, std::int64_t c, Classes<k...>) {
  const std::int64_t stride = s.logits_stride, block = s.block;
  const float *__restrict x = s.logits + c * stride, *__restrict top = s.top;
  const float* __restrict slopes = s.slopes[2] + c + 2;
  const std::int32_t* __restrict index = s.index;
  float* __restrict out = s.exponentials + c * block;
  float *__restrict others = s.other, *__restrict owns = s.own, *__restrict sums = s.drop;
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

void find_maximum(const SoftmaxBlock& s, std::int64_t channels) {
  fill(s.top, s.padded, -__builtin_inff());
  by_fours(channels, [&](std::int64_t c, auto classes) { maximum(s, c, classes); });
  fill(s.other, s.padded, 0.0f), fill(s.own, s.padded, 0.0f), fill(s.drop, s.padded, 0.0f);
}

// inverse = 1 / sum of a valid pixel, extra = log(sum), cost = -log p_y.
void normalise(const SoftmaxBlock& s) {
  const float *__restrict other = s.other, *__restrict own = s.own, *__restrict drop = s.drop;
  const float* __restrict valid = s.valid;
  float *__restrict inverse = s.inverse, *__restrict log_sum = s.extra, *__restrict cost = s.cost;
  FASTMTL_EACH_LANE(i, s.padded) {
    inverse[i] = valid[i] / (other[i] + own[i]);
    // The largest e is 1: where it is the own one, the rest of the sum stands there as it is.
    log_sum[i] = log1p_positive(own[i] == 1.0f ? other[i] : other[i] - 1.0f + own[i]);
    cost[i] = drop[i] + log_sum[i];
  }
}

// Sums of one class of a block: float32 lanes inside the block, float64 across blocks.
template <bool kOverlap, bool kSquared>
void add_class(const SoftmaxBlock& s, std::int64_t channels, std::int64_t c, double* sums) {
  const float *__restrict e = s.exponentials + c * s.block, *__restrict inverse = s.inverse, *__restrict cost = s.cost;
  const std::int32_t* __restrict index = s.index;
  float intersection = 0.0f, prediction = 0.0f, target = 0.0f, entropy = 0.0f;
  FASTMTL_EACH_LANE(i, s.padded) {
    const bool hit = index[i] == static_cast<std::int32_t>(c);
    if (kOverlap) {
      const float p = e[i] * inverse[i];
      prediction += kSquared ? p * p : p;
      intersection += hit ? p : 0.0f;
    }
    target += hit ? 1.0f : 0.0f;
    entropy += hit ? cost[i] : 0.0f;
  }
  sums[kIntersection * channels + c] += intersection;
  sums[kPrediction * channels + c] += prediction;
  sums[kTarget * channels + c] += target;
  sums[kEntropy * channels + c] += entropy;
}

template <bool kSquared>
void add_soft_class(const SoftmaxBlock& s, std::int64_t channels, std::int64_t c, double* sums) {
  const float *__restrict e = s.exponentials + c * s.block, *__restrict x = s.logits + c * s.logits_stride;
  const float *__restrict targets = s.soft + c * s.block, *__restrict inverse = s.inverse, *__restrict top = s.top;
  const float* __restrict log_sum = s.extra;
  float intersection = 0.0f, prediction = 0.0f, target = 0.0f, entropy = 0.0f;
  FASTMTL_EACH_LANE(i, s.padded) {
    const float p = e[i] * inverse[i], t = targets[i];
    prediction += kSquared ? p * p : p;
    intersection += p * t;
    target += kSquared ? t * t : t;
    entropy += t == 0.0f ? 0.0f : t * (top[i] - x[i] + log_sum[i]);
  }
  sums[kIntersection * channels + c] += intersection;
  sums[kPrediction * channels + c] += prediction;
  sums[kTarget * channels + c] += target;
  sums[kEntropy * channels + c] += entropy;
}

void add_spread(const SoftmaxBlock& s, std::int64_t channels, double* sums) {
  const float *__restrict top = s.top, *__restrict log_sum = s.extra, *__restrict valid = s.valid;
  for (std::int64_t c = 0; c < channels; ++c) {
    const float* __restrict x = s.logits + c * s.logits_stride;
    float spread = 0.0f;
    FASTMTL_EACH_LANE(i, s.padded)
      spread += valid[i] != 0.0f ? top[i] - x[i] + log_sum[i] : 0.0f;
    sums[kSpread * channels + c] += spread;
  }
}

// Hard predictions, the first of equal maxima, and pixels with a logit that is NaN or infinite. Called last: it takes
// the row of inverse for itself.
void add_counts(const SoftmaxBlock& s, std::int64_t channels, double* sums) {
  const float *__restrict top = s.top, *__restrict valid = s.valid;
  const std::int32_t* __restrict index = s.index;
  float *__restrict chosen = s.inverse, *__restrict odd = s.cost;
  fill(chosen, s.padded, -1.0f), fill(odd, s.padded, 0.0f);
  for (std::int64_t c = channels - 1; c >= 0; --c) {
    const float* __restrict x = s.logits + c * s.logits_stride;
    const auto number = static_cast<float>(c);
    FASTMTL_EACH_LANE(i, s.padded) {
      chosen[i] = x[i] == top[i] ? number : chosen[i];
      odd[i] = (bits_of<std::int32_t>(x[i]) & 0x7f800000) == 0x7f800000 ? 1.0f : odd[i];
    }
  }
  float not_finite = 0.0f;
  FASTMTL_EACH_LANE(i, s.padded) {
    not_finite += valid[i] * odd[i];
    chosen[i] = valid[i] != 0.0f ? chosen[i] : -1.0f;
  }
  sums[kSoftmaxSums * channels + kNotFinite] += not_finite;
  for (std::int64_t c = 0; c < channels; ++c) {
    const auto number = static_cast<float>(c);
    float hits = 0.0f, predicted = 0.0f;
    FASTMTL_EACH_LANE(i, s.padded) {
      const float here = chosen[i] == number ? 1.0f : 0.0f;
      predicted += here;
      hits += index[i] == static_cast<std::int32_t>(c) ? here : 0.0f;
    }
    sums[kHits * channels + c] += hits;
    sums[kPredicted * channels + c] += predicted;
  }
}

void add_block(const SoftmaxProblem& problem, const SoftmaxBlock& s, double* sums) {
  const std::int64_t C = problem.channels;
  find_maximum(s, C);
  if (problem.overlap || problem.soft)
    by_fours(C, [&](std::int64_t c, auto classes) { exponentials<true>(s, c, classes); });
  else
    by_fours(C, [&](std::int64_t c, auto classes) { exponentials<false>(s, c, classes); });
  normalise(s);
  const auto add = problem.soft       ? (problem.squared ? add_soft_class<true> : add_soft_class<false>)
                   : !problem.overlap ? add_class<false, false>
                                      : (problem.squared ? add_class<true, true> : add_class<true, false>);
  for (std::int64_t c = 0; c < C; ++c) add(s, C, c, sums);
  if (problem.spread) add_spread(s, C, sums);
  if (problem.counts) add_counts(s, C, sums);
  sums[kSoftmaxSums * C + kPixels] += s.pixels;
  if (!problem.soft) sums[kSoftmaxSums * C + kOutside] += s.outside;
}

// What the gradient is made of at each pixel, with u_c = a_c t_c + b_c p_c^(q-1), h_c the slope in the class's
// cross-entropy, and g_c = h_c ((1 - smoothing) t_c + smoothing / C):
//     dx_c = p_c (u_c + sum_k g_k - sum_k p_k u_k) - g_c
// extra = sum_k g_k - sum_k p_k u_k, cost = dx of the pixel's own class by way of 1 - p_y = other / sum.
template <bool kOverlap, bool kSquared>
void prepare_gradient(const SoftmaxBlock& s, float smoothing, float base, float per_class) {
  const float *__restrict other = s.other, *__restrict own = s.own, *__restrict sums = s.drop;
  const float* __restrict valid = s.valid;
  const float *__restrict h = s.slopes[0] + 2, *__restrict a = s.slopes[1] + 2, *__restrict b = s.slopes[2] + 2;
  const std::int32_t* __restrict index = s.index;
  float *__restrict inverse = s.inverse, *__restrict extra = s.extra, *__restrict at_class = s.cost;
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
void differentiate_class(const SoftmaxBlock& s, std::int64_t c, float per_class, float* __restrict out) {
  const float *__restrict e = s.exponentials + c * s.block, *__restrict inverse = s.inverse;
  const float *__restrict extra = s.extra, *__restrict at_class = s.cost;
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
void prepare_soft_gradient(const SoftmaxBlock& s, const SoftmaxProblem& problem, float smoothing, float base) {
  const float *__restrict other = s.other, *__restrict valid = s.valid;
  float *__restrict inverse = s.inverse, *__restrict extra = s.extra;
  FASTMTL_EACH_LANE(i, s.padded) inverse[i] = valid[i] / other[i];
  fill(extra, s.padded, base);
  for (std::int64_t c = 0; c < problem.channels; ++c) {
    const float *__restrict e = s.exponentials + c * s.block, *__restrict t = s.soft + c * s.block;
    const float g = (1.0f - smoothing) * s.slopes[0][c + 2], a = s.slopes[1][c + 2], b = s.slopes[2][c + 2];
    FASTMTL_EACH_LANE(i, s.padded) {
      const float p = e[i] * inverse[i];
      extra[i] += g * t[i] - p * (a * t[i] + (problem.squared ? b * p : b));
    }
  }
}

void differentiate_soft_class(const SoftmaxBlock& s, bool squared, std::int64_t c, float smoothing, float per_class,
                              float* __restrict out) {
  const float *__restrict e = s.exponentials + c * s.block, *__restrict t = s.soft + c * s.block;
  const float *__restrict inverse = s.inverse, *__restrict extra = s.extra;
  const float h = s.slopes[0][c + 2], g = (1.0f - smoothing) * h, a = s.slopes[1][c + 2], b = s.slopes[2][c + 2];
  FASTMTL_EACH_LANE(i, s.padded) {
    const float p = e[i] * inverse[i];
    out[i] = p * (extra[i] + a * t[i] + (squared ? b * p : b)) - g * t[i] - per_class * h;
  }
}

template <bool kOverlap, bool kSquared>
void differentiate_block(const SoftmaxProblem& problem, const SoftmaxBlock& s, float smoothing, const Planes& gradient,
                         std::int64_t start) {
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
  const bool direct = gradient.type == Element::float32 && gradient.pixel == 1 && s.whole;
  for (std::int64_t c = 0; c < C; ++c) {
    const std::int64_t at = start + c * gradient.channel;
    float* out = direct ? static_cast<float*>(gradient.data) + at : s.top;
    if (problem.soft)
      differentiate_soft_class(s, problem.squared, c, smoothing, per_class, out);
    else
      differentiate_class<kOverlap, kSquared>(s, c, per_class, out);
    if (direct) continue;
    const float* __restrict valid = s.valid;
    FASTMTL_EACH_LANE(i, s.padded) out[i] = valid[i] != 0.0f ? out[i] : 0.0f;  // not even a NaN slope
    store(gradient.type, out, gradient.data, at, gradient.pixel, s.count);
  }
}

}  // namespace

// partials [B, chunks, stride], zeros at first.
void softmax_sums(const SoftmaxProblem& problem, const SoftmaxChunks& chunks, double* partials, float* scratch,
                  std::int64_t scratch_size, int threads) {
  const std::int64_t units = problem.batch * chunks.count;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    SoftmaxBlock block(problem, chunks.block, scratch + omp_get_thread_num() * scratch_size);
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < units; ++unit) {
      const std::int64_t b = unit / chunks.count, begin = unit % chunks.count * chunks.pixels;
      const std::int64_t end = begin + chunks.pixels < problem.pixels ? begin + chunks.pixels : problem.pixels;
      for (std::int64_t first = begin; first < end; first += chunks.block)
        if (block.fill(problem, b, first)) add_block(problem, block, partials + unit * chunks.stride(problem.channels));
    }
  }
}

void softmax_gradient(const SoftmaxProblem& problem, const SoftmaxChunks& chunks, const Planes& grad,
                      const float* coefficients, float smoothing, const Planes& gradient, float* scratch,
                      std::int64_t scratch_size, int threads) {
  const std::int64_t units = problem.batch * chunks.count, C = problem.channels;
  const auto differentiate = !problem.overlap ? differentiate_block<false, false>
                             : problem.squared ? differentiate_block<true, true> : differentiate_block<true, false>;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    SoftmaxBlock block(problem, chunks.block, scratch + omp_get_thread_num() * scratch_size);
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < units; ++unit) {
      const std::int64_t b = unit / chunks.count, begin = unit % chunks.count * chunks.pixels;
      const std::int64_t end = begin + chunks.pixels < problem.pixels ? begin + chunks.pixels : problem.pixels;
      const float go = static_cast<const float*>(grad.data)[b * grad.batch];
      for (int k = 0; k < 3; ++k) {
        block.slopes[k][0] = block.slopes[k][1] = 0.0f;
        for (std::int64_t c = 0; c < C; ++c)
          block.slopes[k][c + 2] = go * coefficients[(k * problem.batch + b) * C + c];
      }
      for (std::int64_t first = begin; first < end; first += chunks.block) {
        const std::int64_t start = b * gradient.batch + first * gradient.pixel;
        if (block.fill(problem, b, first)) {
          differentiate(problem, block, smoothing, gradient, start);
          continue;
        }
        fill(block.top, block.padded, 0.0f);
        for (std::int64_t c = 0; c < C; ++c)
          store(gradient.type, block.top, gradient.data, start + c * gradient.channel, gradient.pixel, block.count);
      }
    }
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
