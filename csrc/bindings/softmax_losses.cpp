// Losses on a softmax over channels.
#include "bindings/view.hpp"

#include "losses/class_loss.hpp"
#include "losses/dice_ce.hpp"

namespace py = pybind11;

namespace {

// shape: batch, channels, pixels; options: gamma, smoothing.
fastmtl::ClassLossProblem class_loss_problem(const std::array<std::int64_t, 3>& shape, const View& logits,
                                             const View& target, const View& mask, std::int64_t ignore_index,
                                             std::uintptr_t factors, const std::array<double, 2>& options,
                                             bool by_weight) {
  return {{loss_inputs(shape, logits, target, mask), false, ignore_index}, pointer<const float>(factors),
          static_cast<float>(options[0]), static_cast<float>(options[1]), by_weight};
}

// coefficients [1, batch], or [3, batch] with what is kept of each row of classes.
fastmtl::KeptRows kept_rows(const std::array<std::int64_t, 3>& shape, std::uintptr_t coefficients, bool kept) {
  auto* const first = kept ? pointer<float>(coefficients) + shape[0] : nullptr;
  return {first, kept ? first + shape[0] : nullptr};
}

// shape: batch, channels, pixels; wanted: soft targets, squared, I and P, label smoothing's sums, counts.
fastmtl::DiceCeProblem dice_ce_problem(const std::array<std::int64_t, 3>& shape, const View& logits,
                                        const View& target, const View& mask, std::int64_t ignore_index,
                                        const std::array<bool, 5>& wanted) {
  return {{loss_inputs(shape, logits, target, mask), wanted[0], ignore_index},
          wanted[1], wanted[2], wanted[3], wanted[4]};
}

}  // namespace

void bind_softmax_losses(py::module_& m) {
  m.def(
      "class_loss_forward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::int64_t ignore_index, std::uintptr_t factors, const std::array<double, 2>& options, bool by_weight,
         double factor, int reduction, std::uintptr_t loss, std::uintptr_t coefficients, bool kept,
         int num_threads) {
        return fastmtl::class_loss_forward(
            class_loss_problem(shape, logits, target, mask, ignore_index, factors, options, by_weight), factor,
            static_cast<fastmtl::ClassReduction>(reduction), pointer<float>(loss), pointer<float>(coefficients),
            kept_rows(shape, coefficients, kept), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "Pixels whose class number does not exist; see class_loss.hpp.");
  m.def(
      "class_loss_backward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::int64_t ignore_index, std::uintptr_t factors, const std::array<double, 2>& options, bool by_weight,
         const View& grad, std::uintptr_t coefficients, bool kept, const View& gradient, int num_threads) {
        fastmtl::class_loss_backward(
            class_loss_problem(shape, logits, target, mask, ignore_index, factors, options, by_weight), planes(grad),
            pointer<const float>(coefficients), kept_rows(shape, coefficients, kept), planes(gradient), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = grad * d loss / d logits; see class_loss.hpp.");
  m.def(
      "dice_ce_forward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::int64_t ignore_index, const std::array<bool, 5>& wanted, std::uintptr_t weight, double ce_weight,
         double dice_weight, double smoothing, bool background, bool batch, bool jaccard, double smooth_nr,
         double smooth_dr, int empty, int reduction, std::uintptr_t loss, std::uintptr_t coefficients,
         std::uintptr_t counts, int num_threads) {
        return fastmtl::dice_ce_forward(
            dice_ce_problem(shape, logits, target, mask, ignore_index, wanted),
            {pointer<const float>(weight), ce_weight, dice_weight, smoothing, background, batch,
             {smooth_nr, smooth_dr, jaccard, wanted[1], static_cast<fastmtl::Empty>(empty)}, reduction},
            pointer<float>(loss), pointer<float>(coefficients), pointer<std::int64_t>(counts), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "Pixels whose class number does not exist; see dice_ce.hpp.");
  m.def(
      "softmax_overlap_forward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::int64_t ignore_index, const std::array<bool, 5>& wanted, std::uintptr_t sums, int num_threads) {
        return fastmtl::softmax_overlap_forward(dice_ce_problem(shape, logits, target, mask, ignore_index, wanted),
                                                pointer<float>(sums), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "Pixels whose class number does not exist; see dice_ce.hpp.");
  m.def(
      "dice_ce_backward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::int64_t ignore_index, const std::array<bool, 5>& wanted, const View& grad, std::uintptr_t coefficients,
         double smoothing, const View& gradient, int num_threads) {
        fastmtl::dice_ce_backward(dice_ce_problem(shape, logits, target, mask, ignore_index, wanted), planes(grad),
                                  pointer<const float>(coefficients), smoothing, planes(gradient), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = grad * d loss / d logits; see dice_ce.hpp.");
}
