// Dice + BCE of several heads at their own strides against one full-resolution mask: all heads in one pass of sums and
// one of gradients. The mask is down-sampled block by block, as the heads' logits are read; no smaller mask is stored.
// The definition is fastmtl/reference/deep_supervision.py.
#pragma once

#include <cstdint>

#include "losses/dice_bce.hpp"

namespace fastmtl {

// A tensor [batch, channels, depth, height, width]; strides count elements. data == nullptr: the tensor is absent.
struct Volume {
  void* data;
  Element type;
  std::int64_t batch, channel, pixel[3];
};

enum class Downsample : int { nearest = 0, area = 1, max = 2 };

// One head. Each of its pixels stands for scale[0] x scale[1] x scale[2] pixels of the mask.
struct DeepHead {
  // Its logits; target and mask as planes where it is of full resolution and they have one pixel stride each (then
  // windowed is false), else absent.
  DiceBceProblem problem;
  Chunks chunks;
  std::int64_t size[3], scale[3];
  bool windowed;
  Planes gradient;                 // of the backward
  double weight;                   // 0: switched off, never read
  std::int64_t units, first_unit;  // samples times chunks, and those of the heads before
};

struct DeepSupervision {
  DeepHead* heads;
  std::int64_t number, channels;
  Volume target, mask;  // mask: uint8, 0 = takes part in nothing
  Downsample downsample;
};

// losses [heads]: weight times each head's loss; total: their sum; coefficients [heads, 3, B, C] as of dice_bce, times
// the weight. False where some segment's target has a mean above 1. Options ask for the reduction "mean".
bool deep_supervision_forward(DeepSupervision& problem, const DiceBceOptions& options, float* losses, float* total,
                              float* coefficients, int threads);

// Each head's gradient = grad * d losses / d its logits; grad [heads], or one number with grad_stride 0.
void deep_supervision_backward(DeepSupervision& problem, const float* grad, std::int64_t grad_stride,
                               const float* coefficients, int threads);

FASTMTL_FOR_EACH_ISA(
    void deep_supervision_sums(const DeepSupervision& problem, bool overlap, DiceBceSums* partials, int threads);
    void deep_supervision_gradient(const DeepSupervision& problem, const float* grad, std::int64_t grad_stride,
                                   const float* coefficients, int threads);)

}  // namespace fastmtl
