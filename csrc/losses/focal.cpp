// What happens once per segment rather than once per element: the fixed-order sum, loss and slopes, in float64.
#include "losses/focal.hpp"

#include <algorithm>
#include <vector>

namespace fastmtl {
namespace {

void write_loss(const std::vector<FocalSums>& segments, Reduction reduction, float* loss, float* coefficients) {
  double total = 0.0, elements = 0.0;
  for (const FocalSums& segment : segments) {
    total += segment.loss;
    elements += segment.elements;
  }
  const double of_mean = 1.0 / std::max(elements, 1.0);
  for (std::size_t s = 0; s < segments.size(); ++s) {
    const double own = 1.0 / std::max(segments[s].elements, 1.0);
    const double slope = reduction == Reduction::none ? own : reduction == Reduction::mean ? of_mean : 1.0;
    coefficients[s] = static_cast<float>(slope);
    if (reduction == Reduction::none) loss[s] = static_cast<float>(slope * segments[s].loss);
  }
  if (reduction != Reduction::none) *loss = static_cast<float>(reduction == Reduction::mean ? total * of_mean : total);
}

bool small_planes_forward(const SigmoidFocalProblem& problem, Reduction reduction, float* loss, float* coefficients,
                          int threads) {
  const bool each = reduction == Reduction::none;
  std::vector<FocalSums> groups(static_cast<std::size_t>(groups_of(problem)));
  FASTMTL_DISPATCH(sigmoid_focal_small_plane_losses, problem, each ? loss : nullptr, coefficients, groups.data(),
                   useful_threads(problem, threads));
  FocalSums all{};
  for (const FocalSums& group : groups) {
    all.loss += group.loss;
    all.elements += group.elements;
    all.farthest = std::max(all.farthest, group.farthest);
  }
  if (!each) {
    const double slope = reduction == Reduction::mean ? 1.0 / std::max(all.elements, 1.0) : 1.0;
    std::fill_n(coefficients, problem.batch * problem.channels, static_cast<float>(slope));
    *loss = static_cast<float>(slope * all.loss);
  }
  return plausible(all.farthest);
}

// partials [batch, chunks, width] added up over the chunks, in order: [batch, width].
std::vector<FocalSums> add_chunks(const std::vector<FocalSums>& partials, std::int64_t batch, std::int64_t chunks,
                                  std::int64_t width) {
  std::vector<FocalSums> sums(static_cast<std::size_t>(batch * width));
  for (std::int64_t unit = 0; unit < batch * chunks; ++unit)
    for (std::int64_t w = 0; w < width; ++w) {
      FocalSums& sum = sums[unit / chunks * width + w];
      const FocalSums& part = partials[unit * width + w];
      sum.loss += part.loss;
      sum.elements += part.elements;
      sum.farthest = std::max(sum.farthest, part.farthest);
    }
  return sums;
}

}  // namespace

bool sigmoid_focal_forward(const SigmoidFocalProblem& problem, Reduction reduction, float* loss, float* coefficients,
                           int threads) {
  if (small_planes(problem)) return small_planes_forward(problem, reduction, loss, coefficients, threads);
  const Chunks chunks = chunks_of(problem);
  std::vector<FocalSums> partials(static_cast<std::size_t>(problem.batch * chunks.count * problem.channels));
  FASTMTL_DISPATCH(sigmoid_focal_sums, problem, chunks, partials.data(), useful_threads(problem, threads));
  const std::vector<FocalSums> planes = add_chunks(partials, problem.batch, chunks.count, problem.channels);
  write_loss(planes, reduction, loss, coefficients);
  return std::all_of(planes.begin(), planes.end(), [](const FocalSums& plane) { return plausible(plane.farthest); });
}

void sigmoid_focal_backward(const SigmoidFocalProblem& problem, const Planes& grad, const float* coefficients,
                            const Planes& gradient, int threads) {
  expect_whole_write(problem, gradient);
  threads = useful_threads(problem, threads);
  if (small_planes(problem))
    FASTMTL_DISPATCH(sigmoid_focal_small_plane_gradient, problem, grad, coefficients, gradient, threads);
  else
    FASTMTL_DISPATCH(sigmoid_focal_gradient, problem, chunks_of(problem), grad, coefficients, gradient, threads);
}

}  // namespace fastmtl
