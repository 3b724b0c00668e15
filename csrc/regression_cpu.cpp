// Two passes over input and target, both through blocks that stay in L1: load as float, subtract, sum or store.
// No std:: template here: see isa.hpp.
#include "regression.hpp"

#include "block_io.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr std::int64_t kBlock = 512;  // elements; the three buffers take 6 KiB
constexpr std::int64_t kLanes = 16;   // floats of the widest vector: loops run over whole multiples, with no remainder

// input - target of a block of one plane, 0 where an element takes part in nothing.
struct Block {
  alignas(64) float difference[kBlock];
  std::int64_t count, padded;
  bool masked;
  alignas(64) float valid[kBlock];

  // Returns whether any element can be valid.
  bool fill(const RegressionProblem& problem, std::int64_t b, std::int64_t c, std::int64_t first) {
    const std::int64_t left = problem.pixels - first;
    count = left < kBlock ? left : kBlock;
    padded = (count + kLanes - 1) / kLanes * kLanes;
    masked = false;
    const Planes& mask = problem.mask;
    if (mask.data != nullptr) {
      const std::int64_t start = b * mask.batch + c * mask.channel;
      if (mask.pixel == 0) {
        if (static_cast<const std::uint8_t*>(mask.data)[start] == 0) return false;
      } else {
        load(Element::uint8, mask.data, start + first * mask.pixel, mask.pixel, count, valid);
        masked = true;
      }
    }
    alignas(64) float input_buffer[kBlock], target_buffer[kBlock];
    const float* x = as_float(problem.input, b, c, first, input_buffer);
    const float* t = as_float(problem.target, b, c, first, target_buffer);
    for (std::int64_t i = 0; i < count; ++i) difference[i] = x[i] - t[i];
    if (masked)
      for (std::int64_t i = 0; i < count; ++i) difference[i] = valid[i] != 0.0f ? difference[i] : 0.0f;
    for (std::int64_t i = count; i < padded; ++i) difference[i] = 0.0f;
    return true;
  }

  std::int64_t elements() const {
    if (!masked) return count;
    std::int64_t number = 0;
    for (std::int64_t i = 0; i < count; ++i) number += valid[i] != 0.0f;
    return number;
  }

 private:
  const float* as_float(const Planes& planes, std::int64_t b, std::int64_t c, std::int64_t first,
                        float* buffer) const {
    const std::int64_t start = b * planes.batch + c * planes.channel + first * planes.pixel;
    if (planes.type == Element::float32 && planes.pixel == 1) return static_cast<const float*>(planes.data) + start;
    load(planes.type, planes.data, start, planes.pixel, count, buffer);
    return buffer;
  }
};

// The sum of a block's errors, in at most 32 additions a lane.
template <Error kError>
float block_error(const Block& block, float beta) {
  float sum = 0.0f;
  const float inverse = 1.0f / beta;
  for (std::int64_t i = 0; i < (block.padded & -kLanes); ++i) {
    const float d = block.difference[i], a = __builtin_fabsf(d);
    const float near = a < beta ? a : beta;  // a NaN reaches the sum through the other factor
    sum += kError == Error::squared ? d * d : kError == Error::absolute ? a : near * (a - 0.5f * near) * inverse;
  }
  return sum;
}

// values = slope * d error / d input.
template <Error kError>
void block_slopes(const Block& block, float beta, float slope, float* __restrict values) {
  const float inverse = 1.0f / beta;
  for (std::int64_t i = 0; i < (block.padded & -kLanes); ++i) {
    const float d = block.difference[i], relative = kError == Error::smooth ? d * inverse : d;
    const float sign = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d;
    const bool steep = kError == Error::absolute || (kError == Error::smooth && __builtin_fabsf(relative) >= 1.0f);
    values[i] = slope * (kError == Error::squared ? 2.0f * d : steep ? sign : relative);
  }
  if (block.masked)  // an infinite slope must not reach them either
    for (std::int64_t i = 0; i < block.count; ++i) values[i] = block.valid[i] != 0.0f ? values[i] : 0.0f;
}

// Calls body(unit, b, c, begin, end) for every chunk of every plane.
template <typename Body>
void for_each_chunk(const RegressionProblem& problem, int threads, Body body) {
  const std::int64_t chunks = (problem.pixels + kRegressionChunk - 1) / kRegressionChunk;
  const std::int64_t units = problem.batch * problem.channels * chunks;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t plane = unit / chunks, begin = unit % chunks * kRegressionChunk;
    const std::int64_t end = begin + kRegressionChunk < problem.pixels ? begin + kRegressionChunk : problem.pixels;
    body(unit, plane / problem.channels, plane % problem.channels, begin, end);
  }
}

}  // namespace

// partials [B, C, chunks], written whole.
void regression_sums(const RegressionProblem& problem, RegressionSums* partials, int threads) {
  const auto error = problem.error == Error::squared    ? block_error<Error::squared>
                     : problem.error == Error::absolute ? block_error<Error::absolute>
                                                        : block_error<Error::smooth>;
  for_each_chunk(problem, threads, [&](std::int64_t unit, std::int64_t b, std::int64_t c, std::int64_t begin,
                                       std::int64_t end) {
    RegressionSums sums = {0.0, 0};
    Block block;
    for (std::int64_t first = begin; first < end; first += kBlock) {
      if (!block.fill(problem, b, c, first)) continue;
      sums.error += static_cast<double>(error(block, problem.beta));
      sums.elements += block.elements();
    }
    partials[unit] = sums;
  });
}

void regression_gradient(const RegressionProblem& problem, const float* grad, std::int64_t grad_stride,
                         const float* slopes, const Planes& gradient, int threads) {
  const auto differentiate = problem.error == Error::squared    ? block_slopes<Error::squared>
                             : problem.error == Error::absolute ? block_slopes<Error::absolute>
                                                                : block_slopes<Error::smooth>;
  for_each_chunk(problem, threads, [&](std::int64_t, std::int64_t b, std::int64_t c, std::int64_t begin,
                                       std::int64_t end) {
    Block block;
    alignas(64) float buffer[kBlock];
    for (std::int64_t first = begin; first < end; first += kBlock) {
      const std::int64_t start = b * gradient.batch + c * gradient.channel + first * gradient.pixel;
      const bool any = block.fill(problem, b, c, first);
      const bool direct = any && gradient.type == Element::float32 && gradient.pixel == 1 &&
                          block.count == block.padded;
      float* values = direct ? static_cast<float*>(gradient.data) + start : buffer;
      if (any) differentiate(block, problem.beta, grad[b * grad_stride] * slopes[b], values);
      else for (float& value : buffer) value = 0.0f;
      if (!direct) store(gradient.type, values, gradient.data, start, gradient.pixel, block.count);
    }
  });
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
