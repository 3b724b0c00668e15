// Dice + BCE on logits: one pass of segment sums forward, one elementwise pass backward.
// The definition is fastmtl/reference/dice_bce.py; the formulas of the gradient stand at the top of
// fastmtl/ops/dice_bce.py.
#pragma once

#include <cstdint>

#include "dice_score.hpp"
#include "element.hpp"
#include "isa.hpp"

namespace fastmtl {

// A tensor [batch, channels, pixels]; strides count elements. data == nullptr: the tensor is absent.
struct Planes {
  void* data;
  Element type;
  std::int64_t batch, channel, pixel;
};

struct DiceBceProblem {
  std::int64_t batch, channels, pixels;
  Planes logits;  // float32, float16 or bfloat16
  Planes target;  // any type
  Planes mask;    // uint8 or bool, 0 = takes part in nothing; absent: every element counts
  const float* pos_weight;  // [channels] or [groups * channels] or nullptr
  std::int64_t group_size;  // samples that share a row of pos_weight and weight: batch / groups
  bool squared;
};

struct DiceBceOptions {
  const float* weight;  // [groups * channels] or nullptr
  double bce_weight, dice_weight;
  DiceOptions dice;
  bool over_batch;  // a segment is a channel of a whole group instead of a channel of a sample
  int reduction;  // 0: none; 1: mean; 2: sum
};

// Sums of one segment. `elements` are the valid ones.
struct DiceBceSums {
  double intersection, prediction, target, bce, elements;
};

// Pixels are summed in chunks whose size depends on the shape alone, so that no sum depends on the thread count.
struct DiceBceChunks {
  std::int64_t pixels, count;  // per sample
};
DiceBceChunks dice_bce_chunks(std::int64_t channels, std::int64_t pixels);

// loss [B, C], [C] or [] per group; coefficients [3, B, C]: the loss's slopes in each segment's BCE sum and I, and q
// times the one in P (q = 2 if squared, else 1). False where some segment's target has a mean above 1.
bool dice_bce_forward(const DiceBceProblem& problem, const DiceBceOptions& options, float* loss, float* coefficients,
                      int threads);

// gradient = grad * d loss / d logits, same shape as the logits. grad's strides are 0 along what the loss averaged.
void dice_bce_backward(const DiceBceProblem& problem, const Planes& grad, const float* coefficients,
                       const Planes& gradient, int threads);

#define FASTMTL_DECLARE(isa)                                                                                         \
  namespace isa {                                                                                                    \
  void dice_bce_sums(const DiceBceProblem& problem, const DiceBceChunks& chunks, DiceBceSums* partials, int threads); \
  void dice_bce_gradient(const DiceBceProblem& problem, const DiceBceChunks& chunks, const Planes& grad,             \
                         const float* coefficients, const Planes& gradient, int threads);                            \
  }
FASTMTL_FOR_EACH_ISA(FASTMTL_DECLARE)
#undef FASTMTL_DECLARE

}  // namespace fastmtl
