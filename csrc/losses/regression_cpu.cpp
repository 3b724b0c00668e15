// Two passes over input and target, both through blocks that stay in L1: load as float, subtract, sum or store.
#include "losses/regression.hpp"

#include "core/plane_block.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr float kNothing = 0.0f;  // input and target of what takes part in nothing: no difference

template <Error kError>
inline float error_of(float d, float beta, float inverse) {
  const float a = __builtin_fabsf(d), near = a < beta ? a : beta;  // a NaN reaches the sum through the other factor
  return kError == Error::squared ? d * d : kError == Error::absolute ? a : near * (a - 0.5f * near) * inverse;
}

template <Error kError>
inline float derivative(float d, float inverse) {
  const float relative = kError == Error::smooth ? d * inverse : d;
  const float sign = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d;
  const bool steep = kError == Error::absolute || (kError == Error::smooth && __builtin_fabsf(relative) >= 1.0f);
  return kError == Error::squared ? 2.0f * d : steep ? sign : relative;
}

template <Error kError>
float block_error(const Block& block, float beta) {
  float sum = 0.0f;
  const float inverse = 1.0f / beta, *input = block.logits, *target = block.target;
  for (std::int64_t i = 0; i < (block.padded & -kLanes); ++i)
    sum += error_of<kError>(input[i] - target[i], beta, inverse);
  return sum;
}

template <Error kError>
void add_errors(const Block& block, float beta, Floats sums) {
  const float inverse = 1.0f / beta;
  ConstFloats input = block.logits, target = block.target;
  FASTMTL_EACH_LANE(i, block.padded) sums[i] += error_of<kError>(input[i] - target[i], beta, inverse);
}

// values = slope * d error / d input.
template <Error kError>
void differentiate(const Block& block, float beta, float slope, Floats values) {
  const float inverse = 1.0f / beta;
  ConstFloats input = block.logits, target = block.target;
  FASTMTL_EACH_LANE(i, block.padded) values[i] = slope * derivative<kError>(input[i] - target[i], inverse);
}

template <Error kError>
void differentiate_each(const Block& block, float beta, ConstFloats slopes, Floats values) {
  const float inverse = 1.0f / beta;
  ConstFloats input = block.logits, target = block.target;
  FASTMTL_EACH_LANE(i, block.padded) values[i] = slopes[i] * derivative<kError>(input[i] - target[i], inverse);
}

// The instance of a template over Error that fits.
template <typename Function>
Function* pick(Error error, Function* squared, Function* absolute, Function* smooth) {
  return error == Error::squared ? squared : error == Error::absolute ? absolute : smooth;
}

}  // namespace

// partials [B, chunks, C], written whole.
void regression_sums(const RegressionProblem& problem, const Chunks& chunks, RegressionSums* partials, int threads) {
  const std::int64_t units = problem.batch * chunks.count;
  const auto error = pick(problem.error, block_error<Error::squared>, block_error<Error::absolute>,
                          block_error<Error::smooth>);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    RegressionSums* sums = partials + unit * problem.channels;
    for (std::int64_t c = 0; c < problem.channels; ++c) sums[c] = {0.0, 0};
    for_each_block(problem, chunks, unit, kNothing, [&](const Block& block, std::int64_t, std::int64_t c) {
      sums[c].error += static_cast<double>(error(block, problem.beta));
      sums[c].elements += block.elements();
    });
  }
}

void regression_gradient(const RegressionProblem& problem, const Chunks& chunks, const float* grad,
                         std::int64_t grad_stride, const float* slopes, const Planes& gradient, int threads) {
  const std::int64_t units = problem.batch * chunks.count;
  const auto write = pick(problem.error, differentiate<Error::squared>, differentiate<Error::absolute>,
                          differentiate<Error::smooth>);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit)
    write_blocks(problem, chunks, unit, gradient, kNothing,
                 [&](const Block& block, std::int64_t b, std::int64_t, float* values) {
                   write(block, problem.beta, grad[b * grad_stride] * slopes[b], values);
                 });
}

// Samples of one plane of few elements: sums [groups]; loss and slopes [B] of the reduction "none", or nullptr.
void regression_small_plane_losses(const RegressionProblem& problem, float* loss, float* slopes, RegressionSums* sums,
                                   int threads) {
  const std::int64_t units = groups_of(problem), size = group_planes(problem);
  const auto add = pick(problem.error, add_errors<Error::squared>, add_errors<Error::absolute>,
                        add_errors<Error::smooth>);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    alignas(64) float errors[kBlock] = {}, elements[kBlock] = {};
    std::int64_t count = 0;
    for_each_pixel(problem, unit, kNothing, [&](const Block& block) {
      add(block, problem.beta, errors);
      block.add_elements(elements);
      count = block.count;
    });
    double error = 0.0, number = 0.0;
    for (std::int64_t i = 0; i < count; ++i)
      error += static_cast<double>(errors[i]), number += static_cast<double>(elements[i]);
    sums[unit] = {error, static_cast<std::int64_t>(number)};
    for (std::int64_t i = 0; loss != nullptr && i < count; ++i) {
      const float slope = 1.0f / (elements[i] > 1.0f ? elements[i] : 1.0f);
      slopes[unit * size + i] = slope;
      loss[unit * size + i] = slope * errors[i];
    }
  }
}

void regression_small_plane_gradient(const RegressionProblem& problem, const float* grad, std::int64_t grad_stride,
                                     const float* slopes, const Planes& gradient, int threads) {
  const std::int64_t units = groups_of(problem), size = group_planes(problem);
  const auto write = pick(problem.error, differentiate_each<Error::squared>, differentiate_each<Error::absolute>,
                          differentiate_each<Error::smooth>);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    alignas(64) float own[kBlock] = {};
    const std::int64_t first = unit * size, left = problem.batch - first, count = left < size ? left : size;
    for (std::int64_t i = 0; i < count; ++i) own[i] = grad[(first + i) * grad_stride] * slopes[first + i];
    write_pixels(problem, unit, gradient, kNothing,
                 [&](const Block& block, float* values) { write(block, problem.beta, own, values); });
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
