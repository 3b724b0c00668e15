// What happens once per segment rather than once per element: the fixed-order sum, loss and slopes.
// Compiled without the kernels' relaxed floating-point flags, in float64.
#include "losses/dice_bce.hpp"

#include <algorithm>
#include <vector>

namespace fastmtl {
namespace {

void add(DiceBceSums& sums, const DiceBceSums& more) {
  sums.intersection += more.intersection;
  sums.prediction += more.prediction;
  sums.target += more.target;
  sums.bce += more.bce;
  sums.elements += more.elements;
  sums.farthest = std::max(sums.farthest, more.farthest);
}

// One group: sums [segments]; a segment is a (sample, channel) or a channel. Writes its losses and coefficients.
void write_group(const DiceBceProblem& problem, const DiceBceOptions& options, std::int64_t group,
                 const std::vector<DiceBceSums>& sums, float* loss, float* coefficients) {
  const std::int64_t C = problem.channels, segments = static_cast<std::int64_t>(sums.size());
  const std::int64_t all = problem.batch * C, first = group * problem.group_size * C;
  std::vector<DiceScore<double>> dice;
  double bce = 0.0, elements = 0.0, dice_loss = 0.0, counted = 0.0;
  const auto weight_of = [&](std::int64_t s) {
    return options.weight == nullptr ? 1.0 : static_cast<double>(options.weight[group * C + s % C]);
  };
  for (std::int64_t s = 0; s < segments; ++s) {
    dice.push_back(
        dice_score(sums[s].intersection, sums[s].prediction, sums[s].target, sums[s].elements, options.dice));
    bce += sums[s].bce;
    elements += sums[s].elements;
    if (dice[s].counted) dice_loss += weight_of(s) * dice[s].loss;
    counted += dice[s].counted;
  }
  const bool mean = options.reduction == 1, total_bce = options.reduction == 3;
  double total = 0.0;
  for (std::int64_t s = 0; s < segments; ++s) {
    const double of_bce = options.bce_weight / (total_bce ? 1.0 : std::max(mean ? elements : sums[s].elements, 1.0));
    const double of_dice = options.dice_weight * weight_of(s) / (mean ? std::max(counted, 1.0) : 1.0);
    const double own = of_bce * sums[s].bce + (dice[s].counted ? of_dice * dice[s].loss : 0.0);
    if (options.reduction == 0) loss[group * segments + s] = static_cast<float>(own);
    total += own;
    const double slopes[3] = {of_bce, of_dice * dice[s].of_intersection, of_dice * dice[s].of_prediction};
    for (std::int64_t b = 0; b < (options.over_batch ? problem.group_size : 1); ++b)
      for (int k = 0; k < 3; ++k) coefficients[k * all + first + b * C + s] = static_cast<float>(slopes[k]);
  }
  if (mean)
    total = options.bce_weight * bce / std::max(elements, 1.0) +
            options.dice_weight * dice_loss / std::max(counted, 1.0);
  if (options.reduction != 0) loss[group] = static_cast<float>(total);
}

// partials [B, chunks, C]; counts [4, B, C] or nullptr, written whole.
std::vector<DiceBceSums> partial_sums(const DiceBceProblem& problem, const Chunks& chunks, bool overlap,
                                      std::int64_t* counts, int threads) {
  const std::int64_t C = problem.channels, planes = problem.batch * C;
  const auto size = static_cast<std::size_t>(planes * chunks.count);
  std::vector<DiceBceSums> partials(size);
  if (counts == nullptr && small_planes(problem)) {
    FASTMTL_DISPATCH(dice_bce_small_planes_sums, problem, overlap, partials.data(), useful_threads(problem, threads));
    return partials;
  }
  std::vector<DiceBceCounts> part_counts(counts == nullptr ? 0 : size);
  FASTMTL_DISPATCH(dice_bce_sums, problem, chunks, overlap, partials.data(),
                   counts == nullptr ? nullptr : part_counts.data(), useful_threads(problem, threads));
  if (counts == nullptr) return partials;
  std::fill_n(counts, 4 * planes, 0);
  for (std::int64_t unit = 0; unit < problem.batch * chunks.count; ++unit)
    for (std::int64_t c = 0; c < C; ++c) {
      const std::int64_t plane = unit / chunks.count * C + c;
      const DiceBceCounts& more = part_counts[unit * C + c];
      counts[plane] += more.true_positive;
      counts[planes + plane] += more.false_positive;
      counts[2 * planes + plane] += more.false_negative;
      counts[3 * planes + plane] += more.non_finite;
    }
  return partials;
}

// The sums of every plane [B, C], each added up over its chunks in order.
std::vector<DiceBceSums> add_chunks(const DiceBceProblem& problem, const Chunks& chunks, const DiceBceSums* partials) {
  const std::int64_t C = problem.channels;
  std::vector<DiceBceSums> sums(static_cast<std::size_t>(problem.batch * C));
  for (std::int64_t unit = 0; unit < problem.batch * chunks.count; ++unit)
    for (std::int64_t c = 0; c < C; ++c) add(sums[unit / chunks.count * C + c], partials[unit * C + c]);
  return sums;
}

bool all_plausible(const std::vector<DiceBceSums>& sums) {
  return std::all_of(sums.begin(), sums.end(), [](const DiceBceSums& plane) { return plausible(plane.farthest); });
}

// Planes of few pixels, each a segment: nothing is kept for each but what the caller wants.
bool small_planes_forward(const DiceBceProblem& problem, const DiceBceOptions& options, float* loss,
                          float* coefficients, int threads) {
  const std::int64_t planes = problem.batch * problem.channels;
  const bool mean = options.reduction == 1;
  // The coefficients are written once where what a mean divides by is known beforehand.
  const bool known = mean && problem.mask.data == nullptr && options.dice.empty != Empty::skip;
  double scales[2] = {1.0, 1.0};
  if (known)
    scales[0] = 1.0 / static_cast<double>(planes * problem.pixels), scales[1] = 1.0 / static_cast<double>(planes);
  std::vector<DiceBceTotals> totals(static_cast<std::size_t>(groups_of(problem)));
  FASTMTL_DISPATCH(dice_bce_small_planes_losses, problem, options, scales, loss, coefficients, totals.data(),
                   useful_threads(problem, threads));
  DiceBceTotals all{};
  for (const DiceBceTotals& some : totals) {
    all.loss += some.loss, all.bce += some.bce, all.dice += some.dice;
    all.counted += some.counted, all.elements += some.elements, all.implausible += some.implausible;
  }
  if (mean) {
    const double of_bce = 1.0 / std::max(all.elements, 1.0), of_dice = 1.0 / std::max(all.counted, 1.0);
    all.loss = options.bce_weight * of_bce * all.bce + options.dice_weight * of_dice * all.dice;
    const auto scale = [&](std::int64_t k, double by) {
      for (std::int64_t i = k * planes; i < (k + 1) * planes; ++i) coefficients[i] *= static_cast<float>(by);
    };
    if (!known) scale(0, of_bce), scale(1, of_dice), scale(2, of_dice);
  }
  if (options.reduction != 0) *loss = static_cast<float>(all.loss);
  return all.implausible == 0;
}

}  // namespace

bool dice_bce_forward(const DiceBceProblem& problem, const DiceBceOptions& options, float* loss, float* coefficients,
                      std::int64_t* counts, int threads) {
  const bool one_group = problem.group_size == problem.batch;
  if (small_planes(problem) && one_group && !options.over_batch && counts == nullptr)
    return small_planes_forward(problem, options, loss, coefficients, threads);
  const Chunks chunks = chunks_of(problem);
  const auto partials = partial_sums(problem, chunks, options.dice_weight != 0.0, counts, threads);
  return dice_bce_from_sums(problem, options, chunks, partials.data(), loss, coefficients);
}

bool dice_bce_from_sums(const DiceBceProblem& problem, const DiceBceOptions& options, const Chunks& chunks,
                        const DiceBceSums* partials, float* loss, float* coefficients) {
  const std::int64_t C = problem.channels, samples = problem.group_size;
  const std::vector<DiceBceSums> planes = add_chunks(problem, chunks, partials);
  for (std::int64_t group = 0; group < problem.batch / samples; ++group) {
    std::vector<DiceBceSums> sums(static_cast<std::size_t>((options.over_batch ? 1 : samples) * C));
    for (std::int64_t plane = 0; plane < samples * C; ++plane)
      add(sums[options.over_batch ? plane % C : plane], planes[group * samples * C + plane]);
    write_group(problem, options, group, sums, loss, coefficients);
  }
  return all_plausible(planes);
}

bool sigmoid_overlap_forward(const DiceBceProblem& problem, float* sums, int threads) {
  const Chunks chunks = chunks_of(problem);
  const auto planes = add_chunks(problem, chunks, partial_sums(problem, chunks, true, nullptr, threads).data());
  const std::size_t count = planes.size();
  for (std::size_t plane = 0; plane < count; ++plane) {
    const DiceBceSums& from = planes[plane];
    const double values[5] = {from.intersection, from.prediction, from.target, from.bce, from.elements};
    for (std::size_t k = 0; k < 5; ++k) sums[k * count + plane] = static_cast<float>(values[k]);
  }
  return all_plausible(planes);
}

void dice_bce_backward(const DiceBceProblem& problem, const Planes& grad, const float* coefficients,
                       const Planes& gradient, int threads) {
  expect_whole_write(problem, gradient);
  threads = useful_threads(problem, threads);
  if (small_planes(problem))
    FASTMTL_DISPATCH(dice_bce_small_planes_gradient, problem, grad, coefficients, gradient, threads);
  else
    FASTMTL_DISPATCH(dice_bce_gradient, problem, chunks_of(problem), grad, coefficients, gradient, threads);
}

}  // namespace fastmtl
