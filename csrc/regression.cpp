// What happens once per sample: the fixed-order sum, the loss and its slopes, in float64.
#include "regression.hpp"

#include <algorithm>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastmtl {
namespace {

int useful_threads(const RegressionProblem& problem, int threads) {
  const std::int64_t chunks = problem.batch * problem.channels * problem.pixels / kRegressionChunk;
  return static_cast<int>(std::clamp<std::int64_t>(chunks, 1, std::max(threads, 1)));
}

// A large gradient is fresh memory, which huge pages fault in several times as fast; see planes.cpp.
void expect_whole_write(const RegressionProblem& problem, const Planes& gradient) {
#if defined(__linux__)
  constexpr std::uintptr_t kPage = 4096, kWorthwhile = std::uintptr_t{4} << 20;
  const std::uintptr_t size = gradient.type == Element::float32 ? 4 : 2;
  const auto begin = reinterpret_cast<std::uintptr_t>(gradient.data);
  const auto end = begin + static_cast<std::uintptr_t>(problem.batch * problem.channels * problem.pixels) * size;
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  if (end - begin >= kWorthwhile) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)problem, (void)gradient;
#endif
}

}  // namespace

void regression_forward(const RegressionProblem& problem, int reduction, float* loss, float* slopes, int threads) {
  const std::int64_t chunks = (problem.pixels + kRegressionChunk - 1) / kRegressionChunk;
  const std::int64_t parts = problem.channels * chunks;
  std::vector<RegressionSums> partials(static_cast<std::size_t>(problem.batch * parts));
  FASTMTL_DISPATCH(regression_sums)(problem, partials.data(), useful_threads(problem, threads));
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
  expect_whole_write(problem, gradient);
  FASTMTL_DISPATCH(regression_gradient)
  (problem, grad, grad_stride, slopes, gradient, useful_threads(problem, threads));
}

}  // namespace fastmtl
