// The two passes over all heads: a unit is some blocks of one sample of one head, and idle threads take the next unit,
// because heads differ in cost. Every unit writes its own sums, so their order changes nothing.
#include "losses/deep_supervision.hpp"

#include "losses/dice_bce_block.hpp"
#include "losses/windows.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// Target and validity of the block's pixels, from their windows of the mask.
void sample(const DeepSupervision& problem, const DeepHead& head, Windows& windows, bool masked, std::int64_t b,
            std::int64_t c, std::int64_t first, Block& block) {
  const std::int64_t* size = head.size;
  for (std::int64_t i = 0; i < block.count;) {
    const std::int64_t pixel = first + i, line = pixel / size[2];
    const std::int64_t at[3] = {line / size[1], line % size[1], pixel % size[2]};
    const std::int64_t in_line = size[2] - at[2], left = block.count - i, count = in_line < left ? in_line : left;
    float *target = block.target_buffer + i, *valid = block.valid + i;
    if (problem.downsample == Downsample::nearest) {
      const Volume &from = problem.target, &mask = problem.mask;
      load(from.type, from.data, offset_of(from, head.scale, b, c, at), head.scale[2] * from.pixel[2], count, target);
      if (masked)
        load(Element::uint8, mask.data, offset_of(mask, head.scale, b, c, at), head.scale[2] * mask.pixel[2], count,
             valid);
    } else if (problem.downsample == Downsample::area) {
      windows.reduce<false>(problem, head, masked, b, c, at, count, target, valid);
    } else {
      windows.reduce<true>(problem, head, masked, b, c, at, count, target, valid);
    }
    i += count;
  }
}

// Returns whether any element may be valid.
bool fill(const DeepSupervision& problem, const DeepHead& head, Windows& windows, std::int64_t b, std::int64_t c,
          std::int64_t first, Block& block) {
  if (!head.windowed) return block.fill(head.problem, b, c, first);
  const Volume& mask = problem.mask;
  if (mask.data != nullptr) {
    block.masked = mask.pixel[0] != 0 || mask.pixel[1] != 0 || mask.pixel[2] != 0;
    const std::uint8_t* plane = static_cast<const std::uint8_t*>(mask.data) + b * mask.batch + c * mask.channel;
    if (!block.masked && *plane == 0) return false;
  }
  sample(problem, head, windows, block.masked, b, c, first, block);
  block.target = block.complete(block.target_buffer, 0.0f);
  block.logits = block.as_float(head.problem.logits, b, c, first, kNoLogit, block.logits_buffer);
  return true;
}

// Unit number `own` of one head.
struct Unit {
  const DeepHead* head;
  std::int64_t own;

  Unit(const DeepSupervision& problem, std::int64_t unit) : head(problem.heads) {
    while (unit >= head->first_unit + head->units) ++head;
    own = unit - head->first_unit;
  }
};

std::int64_t units_of(const DeepSupervision& problem) {
  const DeepHead& last = problem.heads[problem.number - 1];
  return last.first_unit + last.units;
}

}  // namespace

// partials [units, C], written whole except for heads of weight 0. I and P are 0 without `overlap`.
void deep_supervision_sums(const DeepSupervision& problem, bool overlap, DiceBceSums* partials, int threads) {
  const std::int64_t units = units_of(problem), channels = problem.channels;
  const AddBlock add = add_block_of(problem.heads->problem, overlap);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
  for (std::int64_t number = 0; number < units; ++number) {
    const Unit unit(problem, number);
    const DeepHead& head = *unit.head;
    if (head.weight == 0.0) continue;
    DiceBceSums* sums = partials + number * channels;
    for (std::int64_t c = 0; c < channels; ++c) sums[c] = {0.0, 0.0, 0.0, 0.0, 0.0, 0};
    Windows windows;
    for_each_block(
        head.problem, head.chunks, unit.own, kNoLogit,
        [&](Block& block, std::int64_t b, std::int64_t c, std::int64_t first) {
          return fill(problem, head, windows, b, c, first, block);
        },
        [&](const Block& block, std::int64_t b, std::int64_t c) {
          add(block, pos_weight_of(head.problem, b, c), sums[c]);
        });
  }
}

void deep_supervision_gradient(const DeepSupervision& problem, const float* grad, std::int64_t grad_stride,
                               const float* coefficients, int threads) {
  const std::int64_t units = units_of(problem), channels = problem.channels;
  const std::int64_t planes = problem.heads->problem.batch * channels;
  const DifferentiateBlock differentiate = differentiate_block_of(problem.heads->problem);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
  for (std::int64_t number = 0; number < units; ++number) {
    const Unit unit(problem, number);
    const DeepHead& head = *unit.head;
    const std::int64_t l = unit.head - problem.heads;
    float slopes[3];
    Windows windows;
    write_blocks(
        head.problem, head.chunks, unit.own, head.gradient, kNoLogit,
        [&](Block& block, std::int64_t b, std::int64_t c, std::int64_t first) {
          const float* slope = coefficients + 3 * l * planes + b * channels + c;
          for (int k = 0; k < 3; ++k) slopes[k] = slope[k * planes];
          // All three are 0 where the plane does not matter, as in a head that is switched off: a NaN must not spread.
          const bool moves = slopes[0] != 0.0f || slopes[1] != 0.0f || slopes[2] != 0.0f;
          return moves && fill(problem, head, windows, b, c, first, block);
        },
        [&](const Block& block, std::int64_t b, std::int64_t c, float* values) {
          differentiate(block, pos_weight_of(head.problem, b, c), grad[l * grad_stride], slopes, values);
        });
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
