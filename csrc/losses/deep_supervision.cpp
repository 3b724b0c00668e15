// The table of all heads' blocks, and what happens once per head rather than once per element.
#include "losses/deep_supervision.hpp"

#include <algorithm>
#include <vector>

namespace fastmtl {
namespace {

// Fills the table; returns how many threads its units are worth.
int plan(DeepSupervision& problem, int threads) {
  std::int64_t units = 0, elements = 0;
  for (DeepHead* head = problem.heads; head != problem.heads + problem.number; ++head) {
    head->chunks = chunks_of(head->problem);
    head->first_unit = units;
    head->units = head->problem.batch * head->chunks.count;
    units += head->units;
    elements += head->problem.batch * problem.channels * head->problem.pixels;
  }
  return useful_threads(elements, threads);
}

}  // namespace

bool deep_supervision_forward(DeepSupervision& problem, const DiceBceOptions& options, float* losses, float* total,
                              float* coefficients, int threads) {
  threads = plan(problem, threads);
  const DeepHead& last = problem.heads[problem.number - 1];
  std::vector<DiceBceSums> partials(static_cast<std::size_t>((last.first_unit + last.units) * problem.channels));
  FASTMTL_DISPATCH(deep_supervision_sums, problem, options.dice_weight != 0.0, partials.data(), threads);
  bool plausible = true;
  double sum = 0.0;
  for (std::int64_t l = 0; l < problem.number; ++l) {
    const DeepHead& head = problem.heads[l];
    float* slopes = coefficients + l * 3 * head.problem.batch * problem.channels;
    if (head.weight == 0.0) {
      losses[l] = 0.0f;
      std::fill_n(slopes, 3 * head.problem.batch * problem.channels, 0.0f);
      continue;
    }
    DiceBceOptions weighted = options;
    weighted.bce_weight *= head.weight;
    weighted.dice_weight *= head.weight;
    const DiceBceSums* sums = partials.data() + head.first_unit * problem.channels;
    plausible &= dice_bce_from_sums(head.problem, weighted, head.chunks, sums, losses + l, slopes);
    sum += losses[l];
  }
  *total = static_cast<float>(sum);
  return plausible;
}

void deep_supervision_backward(DeepSupervision& problem, const float* grad, std::int64_t grad_stride,
                               const float* coefficients, int threads) {
  threads = plan(problem, threads);
  for (std::int64_t l = 0; l < problem.number; ++l)
    expect_whole_write(problem.heads[l].problem, problem.heads[l].gradient);
  FASTMTL_DISPATCH(deep_supervision_gradient, problem, grad, grad_stride, coefficients, threads);
}

}  // namespace fastmtl
