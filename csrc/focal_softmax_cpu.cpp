// Softmax focal loss: with u = 1 - p_y, the sum of the other classes' probabilities, and L = -ln p_y, a pixel's loss is
// a_y u^gamma L, and its slope in x_c is w (p_c - [c = y]) with w = a_y (u^gamma + gamma u^(gamma-1) p_y L); at c = y
// that is -w u, where p_y - 1 would cancel.
// No std:: template here: the linker would keep one copy for all instruction sets, perhaps the AVX-512 one.
#include "focal.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "block_io.hpp"
#include "vec_pow.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr std::int64_t kMost = 256;  // pixels of a tile at most
constexpr std::int64_t kLanes = 16;

// One tile of pixels: what the softmax of each says about its class.
struct Tile {
  float* rows;         // [channels, size]: exp(x - max) once filled
  std::int64_t size;   // pixels with their padding; of `count`
  std::int64_t count;
  alignas(64) float label[kMost];   // class number
  alignas(64) float valid[kMost];   // 1 or 0
  alignas(64) float factor[kMost];  // a_y; 0 where there is no such class
  alignas(64) float inverse[kMost];  // 1 / the sum of a column of rows
  alignas(64) float miss[kMost];     // u
  alignas(64) float loss[kMost];     // L
  alignas(64) float most[kMost], gap[kMost], own[kMost], others[kMost];  // max, max - x_y, row y, the other rows' sum

  void fill(const SoftmaxFocalProblem& problem, std::int64_t b, std::int64_t first, std::int64_t number) {
    count = number;
    size = (count + kLanes - 1) / kLanes * kLanes;
    const std::int64_t channels = problem.channels;
    const Planes &logits = problem.logits, &target = problem.target, &mask = problem.mask;
    load(target.type, target.data, b * target.batch + first * target.pixel, target.pixel, count, label);
    if (mask.data != nullptr) {
      load(Element::uint8, mask.data, b * mask.batch + first * mask.pixel, mask.pixel, count, valid);
    } else {
      for (std::int64_t i = 0; i < count; ++i) valid[i] = 1.0f;
    }
    for (std::int64_t i = count; i < size; ++i) label[i] = valid[i] = 0.0f;
    for (std::int64_t i = 0; i < (size & -kLanes); ++i)
      valid[i] = valid[i] != 0.0f && label[i] != problem.ignore_index ? 1.0f : 0.0f;
    for (std::int64_t c = 0; c < channels; ++c) {
      float* row = rows + c * size;
      const std::int64_t start = b * logits.batch + c * logits.channel + first * logits.pixel;
      load(logits.type, logits.data, start, logits.pixel, count, row);
      for (std::int64_t i = count; i < size; ++i) row[i] = 0.0f;
      if (c == 0)
        for (std::int64_t i = 0; i < (size & -kLanes); ++i) most[i] = row[i];
      else
        for (std::int64_t i = 0; i < (size & -kLanes); ++i) most[i] = row[i] > most[i] ? row[i] : most[i];
    }
    for (std::int64_t i = 0; i < (size & -kLanes); ++i) gap[i] = own[i] = others[i] = factor[i] = 0.0f;
    for (std::int64_t c = 0; c < channels; ++c) {
      float* row = rows + c * size;
      const float number_of_class = static_cast<float>(c);
      const float of_class = problem.factors == nullptr ? 1.0f : problem.factors[c];
      for (std::int64_t i = 0; i < (size & -kLanes); ++i) {
        const float below = most[i] - row[i], e = exp_minus(below);
        const bool hit = label[i] == number_of_class;
        row[i] = e;
        gap[i] = hit ? below : gap[i];
        own[i] = hit ? e : own[i];
        factor[i] = hit ? of_class : factor[i];
        others[i] += hit ? 0.0f : e;
      }
    }
    for (std::int64_t i = 0; i < (size & -kLanes); ++i) {
      const float sum = others[i] + own[i];
      inverse[i] = 1.0f / sum;
      miss[i] = others[i] * inverse[i];
      loss[i] = gap[i] == 0.0f ? log1p_positive(others[i]) : gap[i] + log_normal(sum);  // right: L may be tiny
    }
  }
};

template <int kGamma>
void add_tile(const Tile& tile, float gamma, float channels, FocalSums& sums) {
  float loss = 0.0f, elements = 0.0f, wrong = 0.0f;
  alignas(64) float losses[kMost];  // a loop of its own: GCC vectorises no power beside the choices below
  for (std::int64_t i = 0; i < (tile.size & -kLanes); ++i)
    losses[i] = tile.factor[i] * power<kGamma>(tile.miss[i], gamma) * tile.loss[i];
  for (std::int64_t i = 0; i < (tile.size & -kLanes); ++i) {
    const float valid = tile.valid[i];
    loss += valid != 0.0f ? losses[i] : 0.0f;
    elements += valid;
    wrong += (tile.label[i] < 0.0f) | (tile.label[i] >= channels) ? valid : 0.0f;
  }
  sums.loss += loss;
  sums.elements += elements;
  sums.implausible += wrong;
}

// The slopes w of each pixel, times grad.
template <int kGamma>
void weigh_tile(const Tile& tile, float gamma, float grad, float* __restrict weight) {
  constexpr float kLargest = 1.0e30f;  // far from overflow: the compiler may multiply in another order
  for (std::int64_t i = 0; i < (tile.size & -kLanes); ++i) {
    const float u = tile.miss[i], exact = tile.loss[i];
    const float loss = exact > kLargest ? kLargest : exact;  // times p_y = 0 of an infinite logit: 0
    const float surprise = tile.own[i] * tile.inverse[i] * loss;
    float slope = power<kGamma>(u, gamma);
    if (kGamma == 1) slope += surprise;
    if (kGamma == 2) slope += 2.0f * u * surprise;
    if (kGamma == kAny) {
      const float ratio = u > 0.0f ? surprise / u : 0.0f;  // u^(gamma - 1) alone could be infinite
      slope *= 1.0f + gamma * ratio;
    }
    weight[i] = grad * tile.factor[i] * slope;
  }
}

inline int worker() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace

// partials [B, chunks], written whole.
void softmax_focal_sums(const SoftmaxFocalProblem& problem, const Chunks& chunks, const SoftmaxTile& shape,
                        FocalSums* partials, int threads) {
  const std::int64_t units = problem.batch * chunks.count;
  const float channels = static_cast<float>(problem.channels);
  const auto add = pick(problem.gamma, add_tile<0>, add_tile<1>, add_tile<2>, add_tile<kAny>);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t b = unit / chunks.count, begin = unit % chunks.count * chunks.pixels;
    const std::int64_t end = begin + chunks.pixels < problem.pixels ? begin + chunks.pixels : problem.pixels;
    Tile tile;
    tile.rows = shape.scratch + worker() * problem.channels * shape.pixels;
    FocalSums sums = {0.0, 0.0, 0.0};
    for (std::int64_t first = begin; first < end; first += shape.pixels) {
      tile.fill(problem, b, first, end - first < shape.pixels ? end - first : shape.pixels);
      add(tile, problem.gamma, channels, sums);
    }
    partials[unit] = sums;
  }
}

void softmax_focal_gradient(const SoftmaxFocalProblem& problem, const Chunks& chunks, const SoftmaxTile& shape,
                            const Planes& grad, const float* coefficients, const Planes& gradient, int threads) {
  const std::int64_t units = problem.batch * chunks.count;
  const auto weigh = pick(problem.gamma, weigh_tile<0>, weigh_tile<1>, weigh_tile<2>, weigh_tile<kAny>);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t b = unit / chunks.count, begin = unit % chunks.count * chunks.pixels;
    const std::int64_t end = begin + chunks.pixels < problem.pixels ? begin + chunks.pixels : problem.pixels;
    const float go = static_cast<const float*>(grad.data)[b * grad.batch] * coefficients[b];
    Tile tile;
    tile.rows = shape.scratch + worker() * problem.channels * shape.pixels;
    alignas(64) float weight[kMost], values[kMost];
    for (std::int64_t first = begin; first < end; first += shape.pixels) {
      tile.fill(problem, b, first, end - first < shape.pixels ? end - first : shape.pixels);
      weigh(tile, problem.gamma, go, weight);
      for (std::int64_t c = 0; c < problem.channels; ++c) {
        const float* row = tile.rows + c * tile.size;
        const float number_of_class = static_cast<float>(c);
        for (std::int64_t i = 0; i < (tile.size & -kLanes); ++i) {
          const float p = tile.label[i] == number_of_class ? -tile.miss[i] : row[i] * tile.inverse[i];
          values[i] = tile.valid[i] != 0.0f ? weight[i] * p : 0.0f;
        }
        store(gradient.type, values, gradient.data,
              b * gradient.batch + c * gradient.channel + first * gradient.pixel, gradient.pixel, tile.count);
      }
    }
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
