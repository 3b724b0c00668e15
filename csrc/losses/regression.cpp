// What happens once per sample: the fixed-order sum, the loss and its slopes, in float64.
#include "losses/regression.hpp"

#include <algorithm>
#include <vector>

namespace fastmtl {
namespace {

double slope_of(std::int64_t elements) { return 1.0 / static_cast<double>(std::max<std::int64_t>(elements, 1)); }

// Whether samples are small enough for vector lanes to run over them.
bool small_samples(const RegressionProblem& problem) { return problem.channels == 1 && small_planes(problem); }

// Of groups of samples, or of samples.
std::vector<RegressionSums> sums_of(const RegressionProblem& problem, int reduction, float* loss, float* slopes,
                                    int threads) {
  threads = useful_threads(problem, threads);
  if (small_samples(problem)) {
    std::vector<RegressionSums> groups(static_cast<std::size_t>(groups_of(problem)));
    FASTMTL_DISPATCH(regression_small_plane_losses, problem, reduction == 0 ? loss : nullptr, slopes, groups.data(),
                     threads);
    return groups;
  }
  const Chunks chunks = chunks_of(problem);
  const std::int64_t parts = chunks.count * problem.channels;
  std::vector<RegressionSums> partials(static_cast<std::size_t>(problem.batch * parts));
  std::vector<RegressionSums> samples(static_cast<std::size_t>(problem.batch));
  FASTMTL_DISPATCH(regression_sums, problem, chunks, partials.data(), threads);
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    RegressionSums& sample = samples[b];
    for (std::int64_t part = b * parts; part < (b + 1) * parts; ++part) {
      sample.error += partials[part].error;
      sample.elements += partials[part].elements;
    }
    if (reduction != 0) continue;
    slopes[b] = static_cast<float>(slope_of(sample.elements));
    loss[b] = static_cast<float>(sample.error * slope_of(sample.elements));
  }
  return samples;
}

}  // namespace

void regression_forward(const RegressionProblem& problem, int reduction, float* loss, float* slopes, int threads) {
  double error = 0.0;
  std::int64_t elements = 0;
  for (const RegressionSums& sums : sums_of(problem, reduction, loss, slopes, threads)) {
    error += sums.error;
    elements += sums.elements;
  }
  if (reduction == 0) return;
  const double slope = reduction == 1 ? slope_of(elements) : 1.0;
  std::fill_n(slopes, problem.batch, static_cast<float>(slope));
  *loss = static_cast<float>(error * slope);
}

void regression_backward(const RegressionProblem& problem, const float* grad, std::int64_t grad_stride,
                         const float* slopes, const Planes& gradient, int threads) {
  expect_whole_write(problem, gradient);
  threads = useful_threads(problem, threads);
  if (small_samples(problem))
    FASTMTL_DISPATCH(regression_small_plane_gradient, problem, grad, grad_stride, slopes, gradient, threads);
  else
    FASTMTL_DISPATCH(regression_gradient, problem, chunks_of(problem), grad, grad_stride, slopes, gradient, threads);
}

}  // namespace fastmtl
