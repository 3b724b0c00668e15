// What happens once per segment rather than once per element: chunks, the fixed-order sum, loss and slopes. Where that is
// as often, at few pixels a sample, kernels do it (dice_ce_small_planes_cpu.cpp).
// Compiled without the kernels' relaxed floating-point flags, in float64.
#include "losses/dice_ce.hpp"

#include <algorithm>
#include <vector>

namespace fastmtl {
namespace {

// Planes that a block keeps: logits, exponentials and soft targets.
SoftmaxScratch scratch_of(const DiceCeProblem& problem, const SoftmaxChunks& chunks, int threads) {
  return SoftmaxScratch(problem.channels, chunks, problem.soft ? 3 : 2, 3, threads);
}

// [B, stride] totals of all chunks, added in a fixed order.
std::vector<double> totals(const DiceCeProblem& problem, int threads) {
  const SoftmaxChunks chunks = softmax_chunks(problem);
  const std::int64_t stride = softmax_sums_size(problem.channels);
  std::vector<double> partials(static_cast<std::size_t>(problem.batch * chunks.count * stride), 0.0);
  threads = useful_threads(problem, threads);
  SoftmaxScratch scratch = scratch_of(problem, chunks, threads);
  FASTMTL_DISPATCH(softmax_sums, problem, chunks, partials.data(), scratch.begin(), scratch.size(), threads);
  std::vector<double> sums(static_cast<std::size_t>(problem.batch * stride), 0.0);
  for (std::int64_t b = 0; b < problem.batch; ++b)
    for (std::int64_t chunk = 0; chunk < chunks.count; ++chunk)
      for (std::int64_t k = 0; k < stride; ++k)
        sums[b * stride + k] += partials[(b * chunks.count + chunk) * stride + k];
  return sums;
}

// Blocks, if any, of samples of few pixels.
class SmallPlanes {
 public:
  SmallPlanes(const DiceCeProblem& problem, int threads)
      : chunks_(small_planes_chunks(problem)),
        threads_(useful_threads(problem, threads)),
        scratch_(problem.channels, chunks_, chunks_.rows ? 0 : kSmallPlaneRows, chunks_.rows ? kSmallPlaneRows : 0,
                 threads_) {}
  explicit operator bool() const { return chunks_.block != 0; }
  DiceCeSmallPlanesWork get() { return {chunks_, scratch_.begin(), scratch_.size(), threads_}; }
  std::int64_t units(const DiceCeProblem& problem) const { return chunks_.units(problem.batch); }

 private:
  SoftmaxChunks chunks_;
  int threads_;
  SoftmaxScratch scratch_;
};

DiceCeSmallPlanesTotals run(const DiceCeProblem& problem, const DiceCeOptions& options, SmallPlanes& small,
                            const double scales[2], const DiceCeSmallPlanesOutputs& outputs) {
  std::vector<DiceCeSmallPlanesTotals> totals(static_cast<std::size_t>(small.units(problem)));
  FASTMTL_DISPATCH(dice_ce_small_planes, problem, options, small.get(), scales, outputs, totals.data());
  DiceCeSmallPlanesTotals all{};
  for (const DiceCeSmallPlanesTotals& some : totals) {
    all.loss += some.loss, all.entropy += some.entropy, all.weights += some.weights;
    all.dice += some.dice, all.counted += some.counted, all.outside += some.outside;
  }
  return all;
}

double factor(double weight, double over) { return over == 0.0 ? weight : weight / over; }

// Each class of each sample a segment: nothing is kept for it but what the caller wants.
std::int64_t small_planes_forward(const DiceCeProblem& problem, const DiceCeOptions& options, SmallPlanes& small,
                                  float* loss, float* coefficients, std::int64_t* counts) {
  const bool mean = options.reduction == 1, each = options.reduction == 0 || options.reduction == 4;
  const std::int64_t segments = problem.batch * problem.channels;
  expect_whole_write(3 * segments, {coefficients, Element::float32, 0, 0, 0});
  if (counts != nullptr) expect_whole_write(6 * segments, {counts, Element::float32, 0, 0, 0});  // of twice the size
  // What a mean is divided by if every pixel is valid, every weight 1 and every segment counted: the coefficients are
  // then written once.
  const std::int64_t likely[2] = {problem.batch * problem.pixels,
                                  problem.batch * (problem.channels - (options.background ? 0 : 1))};
  const double scales[2] = {1.0 / static_cast<double>(likely[0]), 1.0 / static_cast<double>(likely[1])};
  const DiceCeSmallPlanesTotals all = run(problem, options, small, scales,
                                          {each ? loss : nullptr, coefficients, counts, nullptr, nullptr});
  if (!each)
    *loss = static_cast<float>(mean ? factor(options.ce_weight, all.weights) * all.entropy +
                                          (all.counted > 0.0 ? options.dice_weight / all.counted * all.dice : 0.0)
                                    : all.loss);
  const double found[2] = {all.weights, all.counted};
  for (std::int64_t term = 0; mean && term < 2; ++term) {
    if (found[term] == static_cast<double>(likely[term])) continue;
    const auto by = static_cast<float>(factor(static_cast<double>(likely[term]), found[term]));
    for (std::int64_t i = term * segments; i < (term == 0 ? 1 : 3) * segments; ++i) coefficients[i] *= by;
  }
  return static_cast<std::int64_t>(all.outside);
}

// [stride] totals of samples of few pixels, all together, in a fixed order.
std::vector<double> small_planes_totals(const DiceCeProblem& problem, const DiceCeOptions& options, SmallPlanes& small,
                                        std::int64_t* counts) {
  const auto stride = static_cast<std::size_t>(softmax_sums_size(problem.channels));
  const auto units = static_cast<std::size_t>(small.units(problem));
  std::vector<double> partials(units * stride, 0.0), sums(stride, 0.0);
  const double scales[2] = {1.0, 1.0};
  const DiceCeSmallPlanesTotals all = run(problem, options, small, scales,
                                          {nullptr, nullptr, counts, nullptr, partials.data()});
  for (std::size_t i = 0; i < partials.size(); ++i) sums[i % stride] += partials[i];
  sums[stride - kSampleSums + kOutside] = all.outside;
  return sums;
}

// Of all samples together.
std::vector<double> merged(const DiceCeProblem& problem, const std::vector<double>& samples) {
  const auto stride = static_cast<std::size_t>(softmax_sums_size(problem.channels));
  std::vector<double> sums(stride, 0.0);
  for (std::size_t i = 0; i < samples.size(); ++i) sums[i % stride] += samples[i];
  return sums;
}

std::int64_t outside(const DiceCeProblem& problem, const std::vector<double>& sums) {
  double number = 0.0;
  const auto stride = static_cast<std::size_t>(softmax_sums_size(problem.channels));
  for (std::size_t end = stride; end <= sums.size(); end += stride) number += sums[end - kSampleSums + kOutside];
  return static_cast<std::int64_t>(number);
}

// A row is what one sum over classes runs over: a sample, or with over_batch all of them.
struct Row {
  double entropy = 0.0, weights = 0.0;  // of the cross-entropy
  double dice = 0.0, counted = 0.0;
};

// sums [rows, stride].
void write_loss(const DiceCeProblem& problem, const DiceCeOptions& options, const std::vector<double>& sums,
                float* loss, float* coefficients) {
  const std::int64_t C = problem.channels, B = problem.batch, stride = softmax_sums_size(C);
  const std::int64_t rows = options.over_batch ? 1 : B;
  const auto weight_of = [&](std::int64_t c) { return options.weight == nullptr ? 1.0 : double{options.weight[c]}; };

  std::vector<DiceScore<double>> dice(static_cast<std::size_t>(rows * C));
  std::vector<Row> found(static_cast<std::size_t>(rows));
  Row all;
  for (std::int64_t row = 0; row < rows; ++row) {
    const double *of = &sums[row * stride], pixels = of[kSoftmaxSums * C + kPixels];
    Row& own = found[row];
    for (std::int64_t c = 0; c < C; ++c) {
      const double weight = weight_of(c), spread = options.smoothing / static_cast<double>(C);
      own.entropy += weight * (1.0 - options.smoothing) * of[kEntropy * C + c];
      if (options.smoothing > 0.0) own.entropy += weight * spread * of[kSpread * C + c];
      if (!problem.soft) own.weights += weight * of[kTarget * C + c];
      if (!problem.overlap || (c == 0 && !options.background)) continue;
      DiceScore<double>& score = dice[row * C + c];
      score = dice_score(of[kIntersection * C + c], of[kPrediction * C + c], of[kTarget * C + c], pixels, options.dice);
      if (score.counted) own.dice += weight * score.loss;
      own.counted += score.counted;
    }
    if (problem.soft) own.weights = pixels;
    all.entropy += own.entropy, all.weights += own.weights, all.dice += own.dice, all.counted += own.counted;
  }

  const bool shared = options.reduction == 1, plain = options.reduction >= 3;
  const bool each = options.reduction == 0 || options.reduction == 4;
  double total = 0.0;
  for (std::int64_t row = 0; row < rows; ++row) {
    const Row& of = shared ? all : found[row];
    const double of_ce = plain ? options.ce_weight : factor(options.ce_weight, of.weights);
    const double of_dice = factor(options.dice_weight, of.counted);
    const double value = of_ce * found[row].entropy + (of.counted > 0.0 ? of_dice * found[row].dice : 0.0);
    if (each) loss[row] = static_cast<float>(value);
    total += value;
    for (std::int64_t b = 0; b < (options.over_batch ? B : 1); ++b)
      for (std::int64_t c = 0; c < C; ++c) {
        const DiceScore<double>& score = dice[row * C + c];
        const double scale = of_dice * weight_of(c);
        const double slopes[3] = {of_ce * weight_of(c), scale * score.of_intersection, scale * score.of_prediction};
        for (int k = 0; k < 3; ++k) coefficients[(k * B + row + b) * C + c] = static_cast<float>(slopes[k]);
      }
  }
  if (!each) *loss = static_cast<float>(total);
}

void write_counts(const DiceCeProblem& problem, const std::vector<double>& sums, std::int64_t* counts) {
  const std::int64_t C = problem.channels, stride = softmax_sums_size(C);
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const double* of = &sums[b * stride];
    std::int64_t* out = counts + b * (3 * C + 1);
    for (std::int64_t c = 0; c < C; ++c) {
      out[c] = static_cast<std::int64_t>(of[kHits * C + c]);
      out[C + c] = static_cast<std::int64_t>(of[kPredicted * C + c] - of[kHits * C + c]);
      out[2 * C + c] = static_cast<std::int64_t>(of[kTarget * C + c] - of[kHits * C + c]);
    }
    out[3 * C] = static_cast<std::int64_t>(of[kSoftmaxSums * C + kNotFinite]);
  }
}

}  // namespace

std::int64_t dice_ce_forward(const DiceCeProblem& problem, const DiceCeOptions& options, float* loss,
                             float* coefficients, std::int64_t* counts, int threads) {
  SmallPlanes small(problem, threads);
  if (small && !options.over_batch) return small_planes_forward(problem, options, small, loss, coefficients, counts);
  const std::vector<double> sums = small ? small_planes_totals(problem, options, small, counts)
                                         : totals(problem, threads);
  write_loss(problem, options, options.over_batch && !small ? merged(problem, sums) : sums, loss, coefficients);
  if (counts != nullptr && !small) write_counts(problem, sums, counts);
  return outside(problem, sums);
}

std::int64_t softmax_overlap_forward(const DiceCeProblem& problem, float* sums, int threads) {
  if (SmallPlanes small(problem, threads); small) {
    const double scales[2] = {1.0, 1.0};
    return static_cast<std::int64_t>(
        run(problem, {}, small, scales, {nullptr, nullptr, nullptr, sums, nullptr}).outside);
  }
  const std::vector<double> found = totals(problem, threads);
  const std::int64_t C = problem.channels, B = problem.batch, stride = softmax_sums_size(C);
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t c = 0; c < C; ++c) {
      for (int k = kIntersection; k <= kEntropy; ++k)
        sums[(k * B + b) * C + c] = static_cast<float>(found[b * stride + k * C + c]);
      sums[(4 * B + b) * C + c] = static_cast<float>(found[b * stride + kSoftmaxSums * C + kPixels]);
    }
  return outside(problem, found);
}

void dice_ce_backward(const DiceCeProblem& problem, const Planes& grad, const float* coefficients, double smoothing,
                      const Planes& gradient, int threads) {
  expect_whole_write(problem, gradient);
  if (SmallPlanes small(problem, threads); small)
    return FASTMTL_DISPATCH(dice_ce_small_planes_gradient, problem, small.get(), grad, coefficients,
                            static_cast<float>(smoothing), gradient);
  const SoftmaxChunks chunks = softmax_chunks(problem);
  threads = useful_threads(problem, threads);
  SoftmaxScratch scratch = scratch_of(problem, chunks, threads);
  FASTMTL_DISPATCH(softmax_gradient, problem, chunks, grad, coefficients, static_cast<float>(smoothing), gradient,
                   scratch.begin(), scratch.size(), threads);
}

}  // namespace fastmtl
