// Dice + cross-entropy of samples of few pixels: what happens once per segment, the score and its slopes, runs in vector
// lanes over samples or over classes, as what happens once per element does.
// No std:: template here: the linker would keep one copy for all instruction sets, perhaps the AVX-512 one.
#include "losses/dice_ce.hpp"

#include <omp.h>

#include "losses/dice_ce_small_planes_sums.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// What one segment adds to its sample, and its slopes before they are divided.
struct SegmentTerms {
  float entropy, weight, dice, counted, of_intersection, of_prediction;
};

struct Rules {
  DiceOptions dice;
  float own, share;  // of label smoothing: the class's cost, every class's
};

inline SegmentTerms segment_terms(const Rules& rules, float intersection, float prediction, float target, float entropy,
                                  float spread, float elements, float weight) {
  const DiceScore<float> score = dice_score(intersection, prediction, target, elements, rules.dice);
  return {weight * (rules.own * entropy + rules.share * spread),
          weight * target,
          weight * score.loss,
          score.counted,
          weight * score.of_intersection,
          weight * score.of_prediction};
}

// Sums over a sample's segments; in float64 where a term for each of very many classes is added.
struct Sample {
  double entropy, dice;
  float weights, counted;
};

Rules rules_of(const DiceCeProblem& problem, const DiceCeOptions& options) {
  const float spread = problem.spread ? static_cast<float>(options.smoothing) : 0.0f;
  return {options.dice, 1.0f - spread, spread / static_cast<float>(problem.channels)};
}

float weight_of(const DiceCeOptions& options, std::int64_t c) {
  return options.weight == nullptr ? 1.0f : options.weight[c];
}

bool has_dice(const DiceCeProblem& problem, const DiceCeOptions& options, std::int64_t c) {
  return problem.overlap && (c > 0 || options.background);
}

// The factors of a sample's terms, and its loss.
struct Factors {
  float of_ce, of_dice, loss;
};

inline Factors factors_of(const DiceCeOptions& options, const double scales[2], const Sample& sample) {
  const bool shared = options.reduction == 1, plain = options.reduction >= 3;
  const float ce = static_cast<float>(options.ce_weight * (shared ? scales[0] : 1.0));
  const float dice = static_cast<float>(options.dice_weight * (shared ? scales[1] : 1.0));
  const float of_ce = shared || plain || sample.weights == 0.0f ? ce : ce / sample.weights;
  const float of_dice = shared || sample.counted == 0.0f ? dice : dice / sample.counted;
  return {of_ce, of_dice,
          static_cast<float>(static_cast<double>(of_ce) * sample.entropy +
                             (sample.counted > 0.0f ? static_cast<double>(of_dice) * sample.dice : 0.0))};
}

void add_totals(DiceCeSmallPlanesTotals& totals, const Sample& sample, float loss) {
  totals.loss += static_cast<double>(loss);
  totals.entropy += sample.entropy, totals.weights += static_cast<double>(sample.weights);
  totals.dice += sample.dice, totals.counted += static_cast<double>(sample.counted);
}

// Lanes over samples, from number `first` on. Leaves the slopes where I and P were.
void write_across(const DiceCeProblem& problem, const DiceCeOptions& options, const double scales[2],
                  const SmallPlaneSums& sums, std::int64_t first, std::int64_t count,
                  const DiceCeSmallPlanesOutputs& outputs, DiceCeSmallPlanesTotals& totals) {
  alignas(64) double entropy[kBlock], dice[kBlock];
  alignas(64) float weights[kBlock], counted[kBlock], of_ce[kBlock], of_dice[kBlock], values[kBlock], none[kBlock];
  const std::int64_t C = problem.channels, B = problem.batch, padded = sums.padded(count);
  const Rules rules = rules_of(problem, options);
  float* const rows[] = {weights, counted, none};
  for (float* row : rows) fill(row, padded, 0.0f);
  FASTMTL_EACH_LANE(i, padded) entropy[i] = dice[i] = 0.0;
  for (std::int64_t c = 0; c < C; ++c) {
    float* __restrict I = sums.at(kIntersection, c), * __restrict P = sums.at(kPrediction, c);
    const float* __restrict T = sums.at(kTarget, c), * __restrict E = sums.at(kEntropy, c);
    const float* __restrict S = sums.at(kSpread, c);
    const float* __restrict elements = has_dice(problem, options, c) ? sums.pixels : none;
    const float weight = weight_of(options, c);
    FASTMTL_EACH_LANE(i, padded) {
      const SegmentTerms terms = segment_terms(rules, I[i], P[i], T[i], E[i], S[i], elements[i], weight);
      entropy[i] += static_cast<double>(terms.entropy), dice[i] += static_cast<double>(terms.dice);
      weights[i] += terms.weight, counted[i] += terms.counted;
      I[i] = terms.of_intersection, P[i] = terms.of_prediction;
    }
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const Sample sample = {entropy[i], dice[i], problem.soft ? sums.pixels[i] : weights[i], counted[i]};
    const Factors factors = factors_of(options, scales, sample);
    of_ce[i] = factors.of_ce, of_dice[i] = factors.of_dice;
    if (outputs.loss != nullptr) outputs.loss[first + i] = factors.loss;
    add_totals(totals, sample, factors.loss);
  }
  for (std::int64_t i = count; i < padded; ++i) of_ce[i] = of_dice[i] = 0.0f;
  for (std::int64_t c = 0; c < C; ++c)
    for (std::int64_t k = 0; k < 3; ++k) {
      const float* __restrict slopes = sums.at(k == 1 ? kIntersection : kPrediction, c);
      const float weight = weight_of(options, c);
      FASTMTL_EACH_LANE(i, padded) values[i] = k == 0 ? of_ce[i] * weight : of_dice[i] * slopes[i];
      store(Element::float32, values, outputs.coefficients, (k * B + first) * C + c, C, count);
    }
}

// Lanes over the classes of sample number b. Leaves the slopes where I and P were, and takes the other sums' rows.
void write_row(const DiceCeProblem& problem, const DiceCeOptions& options, const double scales[2],
               const SmallPlaneSums& sums, std::int64_t b, const DiceCeSmallPlanesOutputs& outputs,
               DiceCeSmallPlanesTotals& totals) {
  const std::int64_t C = problem.channels, B = problem.batch;
  const Rules rules = rules_of(problem, options);
  float* __restrict I = sums.at(kIntersection, 0), * __restrict P = sums.at(kPrediction, 0);
  float* __restrict T = sums.at(kTarget, 0), * __restrict E = sums.at(kEntropy, 0), * __restrict S = sums.at(kSpread, 0);
  float* __restrict elements = sums.x, * __restrict weight = sums.soft;  // the pixels' rows are done with
  fill(elements, sums.row, problem.overlap ? sums.pixels[0] : 0.0f);
  if (!options.background) elements[0] = 0.0f;
  for (std::int64_t c = C; c < sums.row; ++c) elements[c] = 0.0f;
  fill(weight, sums.row, 1.0f);
  if (options.weight != nullptr) load(Element::float32, options.weight, 0, 1, C, weight);
  // First the terms and then their sums: GCC makes branches of choices that end in a sum.
  FASTMTL_EACH_LANE(c, sums.row) {
    const SegmentTerms terms = segment_terms(rules, I[c], P[c], T[c], E[c], S[c], elements[c], weight[c]);
    E[c] = terms.entropy, T[c] = terms.weight, S[c] = terms.dice, elements[c] = terms.counted;
    I[c] = terms.of_intersection, P[c] = terms.of_prediction;
  }
  Sample sample = {0.0, 0.0, 0.0f, 0.0f};
  for (std::int64_t begin = 0; begin < sums.row; begin += kRowPart) {
    const std::int64_t end = sums.row < begin + kRowPart ? sums.row : begin + kRowPart;
    float entropy = 0.0f, weights = 0.0f, dice = 0.0f, counted = 0.0f;
    for (std::int64_t c = begin; c < end; ++c) entropy += E[c], weights += T[c], dice += S[c], counted += elements[c];
    sample.entropy += static_cast<double>(entropy), sample.dice += static_cast<double>(dice);
    sample.weights += weights, sample.counted += counted;
  }
  if (problem.soft) sample.weights = sums.pixels[0];
  const Factors factors = factors_of(options, scales, sample);
  if (outputs.loss != nullptr) outputs.loss[b] = factors.loss;
  add_totals(totals, sample, factors.loss);
  float *h = outputs.coefficients + b * C, *of_i = h + B * C, *of_p = of_i + B * C;
#pragma GCC ivdep
  for (std::int64_t c = 0; c < C; ++c) {
    h[c] = factors.of_ce * weight[c];
    of_i[c] = factors.of_dice * I[c];
    of_p[c] = factors.of_dice * P[c];
  }
}

// Before `write_*`, which overwrite some sums.
void write_sums(const DiceCeProblem& problem, const SmallPlaneSums& sums, std::int64_t first, std::int64_t count,
                float* out) {
  const std::int64_t C = problem.channels, B = problem.batch;
  for (std::int64_t c = 0; c < C; ++c) {
    for (int k = kIntersection; k <= kEntropy; ++k)
      store(Element::float32, sums.at(k, c), out, (k * B + first) * C + c, C, count);
    store(Element::float32, sums.pixels, out, (4 * B + first) * C + c, C, count);
  }
}

void write_counts(const DiceCeProblem& problem, const SmallPlaneSums& sums, std::int64_t first, std::int64_t count,
                  std::int64_t* out) {
  const std::int64_t C = problem.channels, size = 3 * C + 1;
  const auto write = [&](std::int64_t c, std::int64_t i) {
    const float hits = sums.at(kHits, c)[i];
    std::int64_t* of = out + (first + i) * size + c;
    of[0] = static_cast<std::int64_t>(hits);
    of[C] = static_cast<std::int64_t>(sums.at(kPredicted, c)[i] - hits);
    of[2 * C] = static_cast<std::int64_t>(sums.at(kTarget, c)[i] - hits);
  };
  if (sums.stride == 1) {  // one sample
#pragma GCC ivdep
    for (std::int64_t c = 0; c < C; ++c) write(c, 0);
  } else {
    for (std::int64_t c = 0; c < C; ++c)
      for (std::int64_t i = 0; i < count; ++i) write(c, i);
  }
  for (std::int64_t i = 0; i < count; ++i)
    out[(first + i) * size + 3 * C] = static_cast<std::int64_t>(sums.not_finite[i]);
}

void add_partials(const DiceCeProblem& problem, const SmallPlaneSums& sums, std::int64_t count, double* partials) {
  const std::int64_t C = problem.channels;
  for (int k = 0; k < kSoftmaxSums; ++k)
    for (std::int64_t c = 0; sums.wanted[k] && c < C; ++c)
      for (std::int64_t i = 0; i < count; ++i) partials[k * C + c] += static_cast<double>(sums.at(k, c)[i]);
  for (std::int64_t i = 0; i < count; ++i) partials[kSoftmaxSums * C + kPixels] += static_cast<double>(sums.pixels[i]);
}

}  // namespace

// totals [units].
void dice_ce_small_planes(const DiceCeProblem& problem, const DiceCeOptions& options, const DiceCeSmallPlanesWork& work,
                          const double scales[2], const DiceCeSmallPlanesOutputs& outputs,
                          DiceCeSmallPlanesTotals* totals) {
  const SoftmaxChunks& chunks = work.chunks;
  const std::int64_t units = chunks.units(problem.batch), C = problem.channels;
#pragma omp parallel num_threads(work.threads) if (work.threads > 1)
  {
    SmallPlaneSums sums(problem, chunks, work.scratch + omp_get_thread_num() * work.scratch_size);
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < units; ++unit) {
      DiceCeSmallPlanesTotals own = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
      const std::int64_t first = chunks.rows ? unit : unit * chunks.pixels, left = problem.batch - first;
      const std::int64_t most = chunks.rows ? 1 : chunks.pixels, count = left < most ? left : most;
      own.outside = chunks.rows ? sums.add_rows(problem, first) : sums.add_across(problem, chunks, unit);
      if (outputs.counts != nullptr) write_counts(problem, sums, first, count, outputs.counts);
      if (outputs.sums != nullptr) write_sums(problem, sums, first, count, outputs.sums);
      if (outputs.partials != nullptr)
        add_partials(problem, sums, count, outputs.partials + unit * softmax_sums_size(C));
      else if (outputs.coefficients != nullptr && chunks.rows)
        write_row(problem, options, scales, sums, first, outputs, own);
      else if (outputs.coefficients != nullptr)
        write_across(problem, options, scales, sums, first, count, outputs, own);
      totals[unit] = own;
    }
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
