// Losses on a sigmoid.
#include "bindings/view.hpp"

#include "losses/dice_bce.hpp"
#include "losses/focal.hpp"

namespace pybind11::detail {
template <>
struct type_caster<fastmtl::Reduction> : enum_caster<fastmtl::Reduction> {};
}  // namespace pybind11::detail

namespace {

using fastmtl::Planes;
using GroupedSizes = std::array<std::int64_t, 4>;  // groups, batch, channels, pixels

fastmtl::DiceBceProblem dice_bce_problem(const GroupedSizes& shape, const Planes& logits, const Planes& target,
                                         const Planes& mask, Address pos_weight, bool squared) {
  return {{shape[1], shape[2], shape[3], logits, target, mask}, pos_weight, shape[1] / shape[0], squared};
}

// options: positive, negative, gamma.
fastmtl::SigmoidFocalProblem focal_problem(const Sizes& shape, const Planes& logits, const Planes& target,
                                           const Planes& mask, Address factors, const std::array<float, 3>& options) {
  return {loss_inputs(shape, logits, target, mask), factors, options[0], options[1], options[2]};
}

}  // namespace

void bind_sigmoid_losses(pybind11::module_& m) {
  define(
      m, "dice_bce_forward",
      [](const GroupedSizes& shape, const Planes& logits, const Planes& target, const Planes& mask, Address pos_weight,
         Address weight, double bce_weight, double dice_weight, bool batch, bool squared, bool jaccard,
         double smooth_nr, double smooth_dr, fastmtl::Empty empty, int reduction, Address loss, Address coefficients,
         Address counts, int num_threads) {
        return fastmtl::dice_bce_forward(
            dice_bce_problem(shape, logits, target, mask, pos_weight, squared),
            {weight, bce_weight, dice_weight, {smooth_nr, smooth_dr, jaccard, squared, empty}, batch, reduction}, loss,
            coefficients, counts, num_threads);
      },
      "See dice_bce.hpp.");
  define(
      m, "sigmoid_overlap_forward",
      [](const GroupedSizes& shape, const Planes& logits, const Planes& target, const Planes& mask, Address pos_weight,
         bool squared, Address sums, int num_threads) {
        return fastmtl::sigmoid_overlap_forward(dice_bce_problem(shape, logits, target, mask, pos_weight, squared),
                                                sums, num_threads);
      },
      "sums [5, B, C]; see dice_bce.hpp.");
  define(
      m, "dice_bce_backward",
      [](const GroupedSizes& shape, const Planes& logits, const Planes& target, const Planes& mask, Address pos_weight,
         bool squared, const Planes& grad, Address coefficients, const Planes& gradient, int num_threads) {
        fastmtl::dice_bce_backward(dice_bce_problem(shape, logits, target, mask, pos_weight, squared), grad,
                                   coefficients, gradient, num_threads);
      },
      "gradient = grad * d loss / d logits; see dice_bce.hpp.");
  define(
      m, "sigmoid_focal_forward",
      [](const Sizes& shape, const Planes& logits, const Planes& target, const Planes& mask, Address factors,
         const std::array<float, 3>& options, fastmtl::Reduction reduction, Address loss, Address coefficients,
         int num_threads) {
        return fastmtl::sigmoid_focal_forward(focal_problem(shape, logits, target, mask, factors, options), reduction,
                                              loss, coefficients, num_threads);
      },
      "See focal.hpp.");
  define(
      m, "sigmoid_focal_backward",
      [](const Sizes& shape, const Planes& logits, const Planes& target, const Planes& mask, Address factors,
         const std::array<float, 3>& options, const Planes& grad, Address coefficients, const Planes& gradient,
         int num_threads) {
        fastmtl::sigmoid_focal_backward(focal_problem(shape, logits, target, mask, factors, options), grad,
                                        coefficients, gradient, num_threads);
      },
      "gradient = grad * d loss / d logits; see focal.hpp.");
}
