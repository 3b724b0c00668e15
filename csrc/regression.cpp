// What happens once per sample: the fixed-order sum, the loss and its slopes, in float64.
#include "regression.hpp"

#include <algorithm>
#include <vector>

namespace fastmtl {
namespace {

std::int64_t elements_of(const RegressionProblem& problem) {
  return problem.batch * problem.channels * problem.pixels;
}

}  // namespace

void regression_forward(const RegressionProblem& problem, int reduction, float* loss, float* slopes, int threads) {
  const std::int64_t chunks = (problem.pixels + kRegressionChunk - 1) / kRegressionChunk;
  const std::int64_t parts = problem.channels * chunks;
  std::vector<RegressionSums> partials(static_cast<std::size_t>(problem.batch * parts));
  FASTMTL_DISPATCH(regression_sums)(problem, partials.data(), useful_threads(elements_of(problem), threads));
  double error = 0.0;
  std::int64_t elements = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    RegressionSums sample = {0.0, 0};
    for (std::int64_t part = b * parts; part < (b + 1) * parts; ++part) {
      sample.error += partials[part].error;
      sample.elements += partials[part].elements;
    }
    const double slope = 1.0 / static_cast<double>(std::max<std::int64_t>(sample.elements, 1));
    slopes[b] = reduction == 2 ? 1.0f : static_cast<float>(slope);
    if (reduction == 0) loss[b] = static_cast<float>(sample.error * slope);
    error += sample.error;
    elements += sample.elements;
  }
  const double slope = 1.0 / static_cast<double>(std::max<std::int64_t>(elements, 1));
  if (reduction == 1) std::fill(slopes, slopes + problem.batch, static_cast<float>(slope));
  if (reduction != 0) *loss = static_cast<float>(reduction == 1 ? error * slope : error);
}

void regression_backward(const RegressionProblem& problem, const float* grad, std::int64_t grad_stride,
                         const float* slopes, const Planes& gradient, int threads) {
  expect_whole_write(elements_of(problem), gradient);
  FASTMTL_DISPATCH(regression_gradient)
  (problem, grad, grad_stride, slopes, gradient, useful_threads(elements_of(problem), threads));
}

}  // namespace fastmtl
