// What happens once per segment rather than once per element: chunks, the fixed-order sum, loss and slopes.
// Compiled without the kernels' relaxed floating-point flags, in float64.
#include "dice_bce.hpp"

#include <algorithm>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastmtl {
namespace {

constexpr std::int64_t kBlock = 512;           // as in dice_bce_cpu.cpp: chunks are whole blocks
constexpr std::int64_t kChunkElements = 16384;  // over all channels: 64 KiB of float32

void add(DiceBceSums& sums, const DiceBceSums& more) {
  sums.intersection += more.intersection;
  sums.prediction += more.prediction;
  sums.target += more.target;
  sums.bce += more.bce;
  sums.elements += more.elements;
}

// One group: sums [segments]; a segment is a (sample, channel) or a channel. Writes its losses and coefficients.
void finish_group(const DiceBceProblem& problem, const DiceBceOptions& options, std::int64_t group,
                  const std::vector<DiceBceSums>& sums, float* loss, float* coefficients) {
  const std::int64_t C = problem.channels, segments = static_cast<std::int64_t>(sums.size());
  const std::int64_t all = problem.batch * C, first = group * problem.group_size * C;
  std::vector<DiceScore> dice;
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
  const bool mean = options.reduction == 1;
  double total = 0.0;
  for (std::int64_t s = 0; s < segments; ++s) {
    const double of_bce = options.bce_weight / std::max(mean ? elements : sums[s].elements, 1.0);
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

int useful_threads(const DiceBceProblem& problem, int threads) {
  const std::int64_t chunks = problem.batch * problem.channels * problem.pixels / kChunkElements;
  return static_cast<int>(std::clamp<std::int64_t>(chunks, 1, std::max(threads, 1)));
}

// A large gradient is fresh memory, and faulting it in by pages of 4 KiB takes longer than computing it (measured:
// 26 ms against 9 ms with huge pages). Only a hint, and only for whole pages inside the buffer.
void expect_whole_write(const DiceBceProblem& problem, const Planes& gradient) {
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

DiceBceChunks dice_bce_chunks(std::int64_t channels, std::int64_t pixels) {
  const std::int64_t blocks = kChunkElements / std::max<std::int64_t>(channels, 1) / kBlock;
  const std::int64_t size = std::max<std::int64_t>(blocks, 1) * kBlock;
  return {size, (pixels + size - 1) / size};
}

bool dice_bce_forward(const DiceBceProblem& problem, const DiceBceOptions& options, float* loss, float* coefficients,
                      int threads) {
  bool plausible = true;
  const DiceBceChunks chunks = dice_bce_chunks(problem.channels, problem.pixels);
  const std::int64_t C = problem.channels;
  std::vector<DiceBceSums> partials(static_cast<std::size_t>(problem.batch * chunks.count * C));
  FASTMTL_DISPATCH(dice_bce_sums)(problem, chunks, partials.data(), useful_threads(problem, threads));
  for (std::int64_t group = 0; group < problem.batch / problem.group_size; ++group) {
    std::vector<DiceBceSums> sums(static_cast<std::size_t>((options.over_batch ? 1 : problem.group_size) * C));
    for (std::int64_t b = 0; b < problem.group_size; ++b)
      for (std::int64_t chunk = 0; chunk < chunks.count; ++chunk)
        for (std::int64_t c = 0; c < C; ++c)
          add(sums[(options.over_batch ? 0 : b * C) + c],
              partials[((group * problem.group_size + b) * chunks.count + chunk) * C + c]);
    finish_group(problem, options, group, sums, loss, coefficients);
    for (const DiceBceSums& segment : sums) plausible &= !(segment.target > 1.0001 * segment.elements);
  }
  return plausible;
}

void dice_bce_backward(const DiceBceProblem& problem, const Planes& grad, const float* coefficients,
                       const Planes& gradient, int threads) {
  const DiceBceChunks chunks = dice_bce_chunks(problem.channels, problem.pixels);
  expect_whole_write(problem, gradient);
  FASTMTL_DISPATCH(dice_bce_gradient)(problem, chunks, grad, coefficients, gradient, useful_threads(problem, threads));
}

}  // namespace fastmtl
