// Losses on a softmax over channels.
#include "bindings/view.hpp"

#include "losses/class_loss.hpp"
#include "losses/dice_ce.hpp"

namespace pybind11::detail {
template <>
struct type_caster<fastmtl::ClassReduction> : enum_caster<fastmtl::ClassReduction> {};
}  // namespace pybind11::detail

namespace {

using fastmtl::Planes;

// options: gamma, smoothing.
fastmtl::ClassLossProblem class_loss_problem(const Sizes& shape, const Planes& logits, const Planes& target,
                                             const Planes& mask, std::int64_t ignore_index, Address factors,
                                             const std::array<float, 2>& options, bool by_weight) {
  return {{loss_inputs(shape, logits, target, mask), false, ignore_index}, factors, options[0], options[1], by_weight};
}

// coefficients [1, batch], or [3, batch] with what is kept of each row of classes.
fastmtl::KeptRows kept_rows(const Sizes& shape, float* coefficients, bool kept) {
  if (!kept) return {nullptr, nullptr};
  return {coefficients + shape[0], coefficients + 2 * shape[0]};
}

using Wanted = std::array<bool, 5>;  // soft targets, squared, I and P, label smoothing's sums, counts

fastmtl::DiceCeProblem dice_ce_problem(const Sizes& shape, const Planes& logits, const Planes& target,
                                       const Planes& mask, std::int64_t ignore_index, const Wanted& wanted) {
  return {
      {loss_inputs(shape, logits, target, mask), wanted[0], ignore_index}, wanted[1], wanted[2], wanted[3], wanted[4]};
}

}  // namespace

void bind_softmax_losses(pybind11::module_& m) {
  define(
      m, "class_loss_forward",
      [](const Sizes& shape, const Planes& logits, const Planes& target, const Planes& mask, std::int64_t ignore_index,
         Address factors, const std::array<float, 2>& options, bool by_weight, double factor,
         fastmtl::ClassReduction reduction, Address loss, Address coefficients, bool kept, int num_threads) {
        return fastmtl::class_loss_forward(
            class_loss_problem(shape, logits, target, mask, ignore_index, factors, options, by_weight), factor,
            reduction, loss, coefficients, kept_rows(shape, coefficients, kept), num_threads);
      },
      "Pixels whose class number does not exist; see class_loss.hpp.");
  define(
      m, "class_loss_backward",
      [](const Sizes& shape, const Planes& logits, const Planes& target, const Planes& mask, std::int64_t ignore_index,
         Address factors, const std::array<float, 2>& options, bool by_weight, const Planes& grad, Address coefficients,
         bool kept, const Planes& gradient, int num_threads) {
        fastmtl::class_loss_backward(
            class_loss_problem(shape, logits, target, mask, ignore_index, factors, options, by_weight), grad,
            coefficients, kept_rows(shape, coefficients, kept), gradient, num_threads);
      },
      "gradient = grad * d loss / d logits; see class_loss.hpp.");
  define(
      m, "dice_ce_forward",
      [](const Sizes& shape, const Planes& logits, const Planes& target, const Planes& mask, std::int64_t ignore_index,
         const Wanted& wanted, Address weight, double ce_weight, double dice_weight, double smoothing, bool background,
         bool batch, bool jaccard, double smooth_nr, double smooth_dr, fastmtl::Empty empty, int reduction,
         Address loss, Address coefficients, Address counts, int num_threads) {
        const fastmtl::DiceOptions dice = {smooth_nr, smooth_dr, jaccard, wanted[1], empty};
        return fastmtl::dice_ce_forward(dice_ce_problem(shape, logits, target, mask, ignore_index, wanted),
                                        {weight, ce_weight, dice_weight, smoothing, background, batch, dice, reduction},
                                        loss, coefficients, counts, num_threads);
      },
      "Pixels whose class number does not exist; see dice_ce.hpp.");
  define(
      m, "softmax_overlap_forward",
      [](const Sizes& shape, const Planes& logits, const Planes& target, const Planes& mask, std::int64_t ignore_index,
         const Wanted& wanted, Address sums, int num_threads) {
        return fastmtl::softmax_overlap_forward(dice_ce_problem(shape, logits, target, mask, ignore_index, wanted),
                                                sums, num_threads);
      },
      "Pixels whose class number does not exist; see dice_ce.hpp.");
  define(
      m, "dice_ce_backward",
      [](const Sizes& shape, const Planes& logits, const Planes& target, const Planes& mask, std::int64_t ignore_index,
         const Wanted& wanted, const Planes& grad, Address coefficients, double smoothing, const Planes& gradient,
         int num_threads) {
        fastmtl::dice_ce_backward(dice_ce_problem(shape, logits, target, mask, ignore_index, wanted), grad,
                                  coefficients, smoothing, gradient, num_threads);
      },
      "gradient = grad * d loss / d logits; see dice_ce.hpp.");
}
