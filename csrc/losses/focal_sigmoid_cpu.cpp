// Sigmoid focal loss. With p = sigmoid(x), q = 1 - p, t the target, u = 1 - p_t = (1 - t) p + t q and CE the binary
// cross-entropy, a loss is a u^gamma CE and its slope in x is
//     a (gamma u^(gamma-1) (1 - 2 t) p q CE + u^gamma ((1 - t) p - t q)),    a = t positive + (1 - t) negative.
// Both signs of x are one formula in w, the share of the target that x is wrong about (1 - t for x >= 0, else t), in
// e = exp(-|x|) and r = 1 / (1 + e): with U = w + (1 - w) e and V = w - (1 - w) e,
//     CE = w |x| + log1p(e),  u = r U,  (1 - t) p - t q = +-r V,  (1 - 2 t) p q = +-(2 w - 1) r^2 e,
// the sign being that of x. Nothing cancels and nothing overflows.
#include "losses/focal.hpp"

#include "core/plane_block.hpp"
#include "core/sigmoid.hpp"
#include "core/vec_pow.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

struct Focus {
  float negative, difference, gamma;  // a = negative + difference * t
};

Focus focus_of(const SigmoidFocalProblem& problem, std::int64_t c) {
  const float* factors = problem.factors;
  const float positive = problem.positive * (factors == nullptr ? 1.0f : factors[c]);
  const float negative = problem.negative * (factors == nullptr ? 1.0f : factors[problem.channels + c]);
  return {negative, positive - negative, problem.gamma};
}

#if defined(__FP_FAST_FMAF)
constexpr bool kExactExp = false;
#else
constexpr bool kExactExp = true;
#endif

// The share of the target that a logit is wrong about, by its sign bit: for 0 both branches say the same. By masks, for
// two comparisons would be made of a choice.
inline float wrong_share(float x, float t) {
  const std::int32_t negative = bits_of<std::int32_t>(x) >> 31;
  return bits_of<float>((bits_of<std::int32_t>(t) & negative) | (bits_of<std::int32_t>(1.0f - t) & ~negative));
}

template <int kGamma>
inline float loss_of(float x, float t, const Focus& focus) {
  const float size = __builtin_fabsf(x), w = wrong_share(x, t), e = exp_minus<kExactExp>(size);
  const float linear = w == 0.0f ? 0.0f : w * size;  // an infinite logit on the right side costs 0, not NaN
  const float u = kGamma == 0 ? 1.0f : fused(w, 1.0f - e, e) / (1.0f + e);
  return (focus.negative + focus.difference * t) * power<kGamma>(u, focus.gamma) * (linear + log1p_unit(e));
}

template <int kGamma>
inline float derivative(float x, float t, const Focus& focus) {
  constexpr std::int32_t kSign = INT32_MIN;
  const float size = __builtin_fabsf(x), e = exp_minus<kExactExp>(size), d = 1.0f + e, r = 1.0f / d;
  const std::int32_t sign = bits_of<std::int32_t>(x) & kSign;
  // The entropy is only used times e: where e is 0 the logit, perhaps infinite, is left out. exp_minus makes the
  // same comparison, so that it costs nothing.
  const float finite = bits_of<float>(bits_of<std::int32_t>(size) & -static_cast<std::int32_t>(!(size > kNoExp)));
  const float w = wrong_share(x, t), U = fused(w, 1.0f - e, e), V = fused(w, d, -e);
  const float entropy = fused(w, finite, log1p_unit(e)), of_miss = fused(w, 2.0f * e, -e) * entropy;
  float slope = r * V;
  if (kGamma == 1) slope = r * r * (of_miss + U * V);
  if (kGamma == 2) slope = r * r * r * U * (2.0f * of_miss + U * V);
  if (kGamma == kAny) {
    const float ratio = U > 0.0f ? of_miss / U : 0.0f;  // u^(gamma - 1) alone could be infinite
    slope = power_unit(r * U, focus.gamma) * r * (focus.gamma * ratio + V);
  }
  return (focus.negative + focus.difference * t) * bits_of<float>(bits_of<std::int32_t>(slope) ^ sign);
}

// The targets of a block in their own type T.
template <int kGamma, typename T>
void add_block(const Block& block, const T* targets, const Focus& focus, FocalSums& sums) {
  float loss = 0.0f;
  Distance farthest = 0;
  const float* logits = block.logits;
  for (std::int64_t i = 0; i < (block.padded & -kLanes); ++i) {  // the mask tells the compiler there is no remainder
    const float t = to_float(targets[i]);
    loss += loss_of<kGamma>(logits[i], t, focus);
    farthest = farther(farthest, distance_of(t));
  }
  const std::int64_t elements = block.elements();
  if (elements > 0) sums.loss += loss;  // an infinite factor makes masked elements NaN
  sums.farthest = farther(sums.farthest, farthest);
  sums.elements += static_cast<double>(elements);
}

// values = grad * slope of a block.
template <int kGamma, typename T>
void differentiate_block(const Block& block, const T* __restrict targets, const Focus& focus, float grad,
                         Floats values) {
  const Focus scaled = {grad * focus.negative, grad * focus.difference, focus.gamma};
  ConstFloats logits = block.logits;
  for (std::int64_t i = 0; i < (block.padded & -kLanes); ++i)
    values[i] = derivative<kGamma>(logits[i], to_float(targets[i]), scaled);
}

// Fills a block, as Block::fill does; contiguous targets of bytes are not copied: `bytes`.
inline bool fill_but_bytes(const LossInputs& inputs, Block& block, std::int64_t b, std::int64_t c, std::int64_t first,
                           const std::uint8_t*& bytes) {
  const Planes& target = inputs.target;
  const bool byte = target.type == Element::uint8 || target.type == Element::boolean;
  bytes = nullptr;
  if (!byte || target.pixel != 1 || inputs.mask.data != nullptr || block.count != block.padded)
    return block.fill(inputs, b, c, first);
  bytes = static_cast<const std::uint8_t*>(target.data) + b * target.batch + c * target.channel + first;
  block.logits = block.as_float(inputs.logits, b, c, first, kNoLogit, block.logits_buffer);
  return true;
}

// A group of planes of few pixels: its factors and sums, plane by plane.
struct Group {
  alignas(64) float negative[kBlock], difference[kBlock], loss[kBlock], elements[kBlock];
  alignas(64) Distance farthest[kBlock];
  std::int64_t first, count, padded;

  Group(const SigmoidFocalProblem& problem, std::int64_t unit) {
    Block shape(kNoLogit);
    first = unit * group_planes(problem);
    shape.start(problem.batch * problem.channels, first, group_planes(problem));
    count = shape.count, padded = shape.padded;
    FASTMTL_EACH_LANE(i, padded) loss[i] = elements[i] = 0.0f;
    FASTMTL_EACH_LANE(i, padded) farthest[i] = 0;
    FASTMTL_EACH_LANE(i, padded) negative[i] = problem.negative;
    FASTMTL_EACH_LANE(i, padded) difference[i] = problem.positive - problem.negative;
    for (std::int64_t i = 0; problem.factors != nullptr && i < count; ++i) {
      const Focus focus = focus_of(problem, (first + i) % problem.channels);
      negative[i] = focus.negative, difference[i] = focus.difference;
    }
  }
};

template <int kGamma>
void add_pixel(const Block& block, float gamma, Group& group) {
  ConstFloats logits = block.logits, targets = block.target, negative = group.negative, difference = group.difference;
  Floats loss = group.loss;
  Distance* __restrict farthest = group.farthest;
  FASTMTL_EACH_LANE(i, block.padded)
    loss[i] += loss_of<kGamma>(logits[i], targets[i], {negative[i], difference[i], gamma});
  FASTMTL_EACH_LANE(i, block.padded) farthest[i] = farther(farthest[i], distance_of(targets[i]));
  block.add_elements(group.elements);
}

template <int kGamma>
void differentiate_pixel(const Block& block, float gamma, const Group& group, Floats values) {
  ConstFloats logits = block.logits, targets = block.target, negative = group.negative, difference = group.difference;
  FASTMTL_EACH_LANE(i, block.padded)
    values[i] = derivative<kGamma>(logits[i], targets[i], {negative[i], difference[i], gamma});
}

}  // namespace

// partials [B, chunks, C], written whole.
void sigmoid_focal_sums(const SigmoidFocalProblem& problem, const Chunks& chunks, FocalSums* partials, int threads) {
  using Byte = std::uint8_t;
  const std::int64_t units = problem.batch * chunks.count;
  const auto add = pick(problem.gamma, add_block<0, float>, add_block<1, float>, add_block<2, float>,
                        add_block<kAny, float>);
  const auto add_bytes = pick(problem.gamma, add_block<0, Byte>, add_block<1, Byte>, add_block<2, Byte>,
                              add_block<kAny, Byte>);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    FocalSums* sums = partials + unit * problem.channels;
    for (std::int64_t c = 0; c < problem.channels; ++c) sums[c] = {0.0, 0.0, 0};
    const Byte* bytes = nullptr;
    const auto fill = [&](Block& block, std::int64_t b, std::int64_t c, std::int64_t first) {
      return fill_but_bytes(problem, block, b, c, first, bytes);
    };
    for_each_block(problem, chunks, unit, kNoLogit, fill, [&](const Block& block, std::int64_t, std::int64_t c) {
      const Focus focus = focus_of(problem, c);
      bytes == nullptr ? add(block, block.target, focus, sums[c]) : add_bytes(block, bytes, focus, sums[c]);
    });
  }
}

void sigmoid_focal_gradient(const SigmoidFocalProblem& problem, const Chunks& chunks, const Planes& grad,
                            const float* coefficients, const Planes& gradient, int threads) {
  using Byte = std::uint8_t;
  const std::int64_t units = problem.batch * chunks.count;
  const auto of_floats = pick(problem.gamma, differentiate_block<0, float>, differentiate_block<1, float>,
                              differentiate_block<2, float>, differentiate_block<kAny, float>);
  const auto of_bytes = pick(problem.gamma, differentiate_block<0, Byte>, differentiate_block<1, Byte>,
                             differentiate_block<2, Byte>, differentiate_block<kAny, Byte>);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const Byte* bytes = nullptr;
    const auto fill = [&](Block& block, std::int64_t b, std::int64_t c, std::int64_t first) {
      return fill_but_bytes(problem, block, b, c, first, bytes);
    };
    write_blocks(problem, chunks, unit, gradient, kNoLogit, fill,
                 [&](const Block& block, std::int64_t b, std::int64_t c, float* values) {
                   const float go = static_cast<const float*>(grad.data)[b * grad.batch + c * grad.channel];
                   const float scale = go * coefficients[b * problem.channels + c];
                   const Focus focus = focus_of(problem, c);
                   bytes == nullptr ? of_floats(block, block.target, focus, scale, values)
                                    : of_bytes(block, bytes, focus, scale, values);
                 });
  }
}

// Planes of few pixels: sums [groups]. loss and coefficients
// [planes] of the reduction "none", or nullptr.
void sigmoid_focal_small_plane_losses(const SigmoidFocalProblem& problem, float* loss, float* coefficients,
                                      FocalSums* sums, int threads) {
  const std::int64_t units = groups_of(problem);
  const auto add = pick(problem.gamma, add_pixel<0>, add_pixel<1>, add_pixel<2>, add_pixel<kAny>);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    Group group(problem, unit);
    for_each_pixel(problem, unit, kNoLogit, [&](const Block& block) { add(block, problem.gamma, group); });
    FASTMTL_EACH_LANE(i, group.padded) group.loss[i] = group.elements[i] > 0.0f ? group.loss[i] : 0.0f;
    double total = 0.0, elements = 0.0;
    Distance farthest = 0;
    for (std::int64_t i = 0; i < group.count; ++i) {
      total += static_cast<double>(group.loss[i]), elements += static_cast<double>(group.elements[i]);
      farthest = farther(farthest, group.farthest[i]);
    }
    sums[unit] = {total, elements, farthest};
    for (std::int64_t i = 0; loss != nullptr && i < group.count; ++i) {
      const float slope = 1.0f / (group.elements[i] > 1.0f ? group.elements[i] : 1.0f);
      coefficients[group.first + i] = slope;
      loss[group.first + i] = slope * group.loss[i];
    }
  }
}

void sigmoid_focal_small_plane_gradient(const SigmoidFocalProblem& problem, const Planes& grad,
                                        const float* coefficients, const Planes& gradient, int threads) {
  const std::int64_t units = groups_of(problem);
  const auto differentiate = pick(problem.gamma, differentiate_pixel<0>, differentiate_pixel<1>, differentiate_pixel<2>,
                                  differentiate_pixel<kAny>);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    Group group(problem, unit);
    alignas(64) float go[kBlock];
    load_across(grad, problem.channels, group.first, 0, group.count, go);
    for (std::int64_t i = 0; i < group.count; ++i) {
      const float slope = go[i] * coefficients[group.first + i];
      group.negative[i] *= slope, group.difference[i] *= slope;
    }
    write_pixels(problem, unit, gradient, kNoLogit,
                 [&](const Block& block, float* values) { differentiate(block, problem.gamma, group, values); });
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
