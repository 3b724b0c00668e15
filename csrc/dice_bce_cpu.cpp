// Two passes over logits and targets, both through blocks that stay in L1: load as float, compute, sum or store.
//
// e = exp(-|x|), p = x >= 0 ? 1 / (1 + e) : e / (1 + e) and 1 - p the other way round: nothing cancels and nothing
// overflows. A logit of -infinity with target 0 adds exactly 0 to every sum, so masked elements and the padding of a
// last block are turned into that.
// No std:: template here: the linker would keep one copy for all instruction sets, perhaps the AVX-512 one.
#include "dice_bce.hpp"

#include "block_io.hpp"
#include "vec_math.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr std::int64_t kBlock = 512;  // pixels; the three buffers take 6 KiB
constexpr std::int64_t kLanes = 16;   // floats of the widest vector: loops run over whole multiples, with no remainder

struct Sigmoid {
  float e, p, q;  // exp(-|x|), the probability, 1 - p
};

inline Sigmoid sigmoid(float x) {
  const float e = exp_minus(__builtin_fabsf(x));
  const float r = 1.0f / (1.0f + e);
  const float small = e * r;
  return {e, x >= 0.0f ? r : small, x >= 0.0f ? small : r};
}

// One block of one plane as float: where it lies if it can be used as it is, else converted into a buffer.
struct Block {
  const float* logits;
  const float* target;
  alignas(64) float logits_buffer[kBlock];
  alignas(64) float target_buffer[kBlock];
  alignas(64) float valid[kBlock];
  std::int64_t count, padded;
  bool masked;

  // Returns whether any element is valid.
  bool fill(const DiceBceProblem& problem, std::int64_t b, std::int64_t c, std::int64_t first) {
    const std::int64_t left = problem.pixels - first;
    count = left < kBlock ? left : kBlock;
    padded = (count + kLanes - 1) / kLanes * kLanes;
    masked = false;
    if (problem.mask.data != nullptr) {
      const Planes& mask = problem.mask;
      const std::int64_t start = b * mask.batch + c * mask.channel;
      if (mask.pixel == 0) {
        if (static_cast<const std::uint8_t*>(mask.data)[start] == 0) return false;
      } else {
        load(Element::uint8, mask.data, start + first * mask.pixel, mask.pixel, count, valid);
        masked = true;
      }
    }
    logits = as_float(problem.logits, b, c, first, -__builtin_inff(), logits_buffer);
    target = as_float(problem.target, b, c, first, 0.0f, target_buffer);
    return true;
  }

  std::int64_t elements() const {
    if (!masked) return count;
    std::int64_t number = 0;
    for (std::int64_t i = 0; i < count; ++i) number += valid[i] != 0.0f;
    return number;
  }

  // Whether a loop over whole vectors may touch the tensor itself.
  bool direct(const Planes& planes) const {
    return planes.type == Element::float32 && planes.pixel == 1 && !masked && count == padded;
  }

 private:
  // `nothing` stands in for masked elements and fills the buffer up to whole vectors.
  const float* as_float(const Planes& planes, std::int64_t b, std::int64_t c, std::int64_t first, float nothing,
                        float* buffer) const {
    const std::int64_t start = b * planes.batch + c * planes.channel + first * planes.pixel;
    if (direct(planes)) return static_cast<const float*>(planes.data) + start;
    load(planes.type, planes.data, start, planes.pixel, count, buffer);
    if (masked)
      for (std::int64_t i = 0; i < count; ++i) buffer[i] = valid[i] != 0.0f ? buffer[i] : nothing;
    for (std::int64_t i = count; i < padded; ++i) buffer[i] = nothing;
    return buffer;
  }
};

// Adds a block to the sums: float32 lanes inside the block (at most 32 additions a lane), float64 across blocks.
template <bool kSquared, bool kWeighted>
void add_block(const Block& block, float pos_weight, DiceBceSums& sums) {
  float intersection = 0.0f, prediction = 0.0f, target = 0.0f, bce = 0.0f;
  const float minus_weight = -pos_weight, extra_weight = pos_weight - 1.0f;
  const float *logits = block.logits, *targets = block.target;
  for (std::int64_t i = 0; i < (block.padded & -kLanes); ++i) {  // the mask tells the compiler there is no remainder
    const float x = logits[i], t = targets[i];
    const Sigmoid s = sigmoid(x);
    const float slope = kWeighted ? (x >= 0.0f ? 1.0f - t : minus_weight * t) : (x >= 0.0f ? 1.0f : 0.0f) - t;
    const float linear = slope == 0.0f ? 0.0f : slope * x;  // an infinite logit on the right side costs 0, not NaN
    bce += linear + (kWeighted ? (1.0f + extra_weight * t) * log1p_unit(s.e) : log1p_unit(s.e));
    intersection += s.p * t;
    prediction += kSquared ? s.p * s.p : s.p;
    target += kSquared ? t * t : t;
  }
  sums.intersection += intersection;
  sums.prediction += prediction;
  sums.target += target;
  sums.bce += bce;
  sums.elements += static_cast<double>(block.elements());
}

// values = grad * d loss / d logits of a block. slopes: of the loss in the BCE sum, in I, and q times that in P.
template <bool kSquared>
void differentiate_block(const Block& block, float pos_weight, float grad, const float slopes[3],
                         float* __restrict values) {
  const float of_bce = grad * slopes[0], of_intersection = grad * slopes[1], of_prediction = grad * slopes[2];
  const float *logits = block.logits, *targets = block.target;
  for (std::int64_t i = 0; i < (block.padded & -kLanes); ++i) {
    const float t = targets[i];
    const Sigmoid s = sigmoid(logits[i]);
    const float bce = (1.0f - t) * s.p - pos_weight * t * s.q;
    const float dice = of_intersection * t + (kSquared ? of_prediction * s.p : of_prediction);
    values[i] = of_bce * bce + dice * (s.p * s.q);
  }
  if (block.masked)  // a NaN coefficient must not reach them either
    for (std::int64_t i = 0; i < block.count; ++i) values[i] = block.valid[i] != 0.0f ? values[i] : 0.0f;
}

float pos_weight_of(const DiceBceProblem& problem, std::int64_t b, std::int64_t c) {
  if (problem.pos_weight == nullptr) return 1.0f;
  return problem.pos_weight[b / problem.group_size * problem.channels + c];
}

}  // namespace

// partials [B, chunks, C], written whole. The channels of one chunk go together: with channels_last they share lines.
void dice_bce_sums(const DiceBceProblem& problem, const DiceBceChunks& chunks, DiceBceSums* partials, int threads) {
  const std::int64_t units = problem.batch * chunks.count;
  const bool weighted = problem.pos_weight != nullptr;
  const auto add = problem.squared ? (weighted ? add_block<true, true> : add_block<true, false>)
                                   : (weighted ? add_block<false, true> : add_block<false, false>);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t b = unit / chunks.count, begin = unit % chunks.count * chunks.pixels;
    const std::int64_t end = begin + chunks.pixels < problem.pixels ? begin + chunks.pixels : problem.pixels;
    DiceBceSums* sums = partials + unit * problem.channels;
    for (std::int64_t c = 0; c < problem.channels; ++c) sums[c] = {0.0, 0.0, 0.0, 0.0, 0.0};
    Block block;
    for (std::int64_t first = begin; first < end; first += kBlock)
      for (std::int64_t c = 0; c < problem.channels; ++c) {
        if (!block.fill(problem, b, c, first)) continue;
        add(block, pos_weight_of(problem, b, c), sums[c]);
      }
  }
}

void dice_bce_gradient(const DiceBceProblem& problem, const DiceBceChunks& chunks, const Planes& grad,
                       const float* coefficients, const Planes& gradient, int threads) {
  const std::int64_t units = problem.batch * chunks.count, segments = problem.batch * problem.channels;
  const auto differentiate = problem.squared ? differentiate_block<true> : differentiate_block<false>;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t b = unit / chunks.count, begin = unit % chunks.count * chunks.pixels;
    const std::int64_t end = begin + chunks.pixels < problem.pixels ? begin + chunks.pixels : problem.pixels;
    Block block;
    alignas(64) float buffer[kBlock];
    for (std::int64_t first = begin; first < end; first += kBlock)
      for (std::int64_t c = 0; c < problem.channels; ++c) {
        const float* slope = coefficients + b * problem.channels + c;
        const float slopes[3] = {slope[0], slope[segments], slope[2 * segments]};
        const float go = static_cast<const float*>(grad.data)[b * grad.batch + c * grad.channel];
        const std::int64_t start = b * gradient.batch + c * gradient.channel + first * gradient.pixel;
        const bool any = block.fill(problem, b, c, first), direct = any && block.direct(gradient);
        float* values = direct ? static_cast<float*>(gradient.data) + start : buffer;
        if (any) differentiate(block, pos_weight_of(problem, b, c), go, slopes, values);
        else for (float& value : buffer) value = 0.0f;
        if (!direct) store(gradient.type, values, gradient.data, start, gradient.pixel, block.count);
      }
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
