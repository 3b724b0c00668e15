// Losses on a sigmoid.
#include "bindings/view.hpp"

#include "losses/dice_bce.hpp"
#include "losses/focal.hpp"

namespace py = pybind11;

namespace {

fastmtl::DiceBceProblem dice_bce_problem(const std::array<std::int64_t, 4>& shape, const View& logits,
                                         const View& target, const View& mask, std::uintptr_t pos_weight, bool squared) {
  return {{shape[1], shape[2], shape[3], planes(logits), planes(target), planes(mask)},
          pointer<const float>(pos_weight), shape[1] / shape[0], squared};
}

fastmtl::SigmoidFocalProblem sigmoid_focal_problem(const std::array<std::int64_t, 3>& shape, const View& logits,
                                                   const View& target, const View& mask, std::uintptr_t factors,
                                                   const std::array<double, 3>& options) {
  return {loss_inputs(shape, logits, target, mask), pointer<const float>(factors), static_cast<float>(options[0]),
          static_cast<float>(options[1]), static_cast<float>(options[2])};
}

}  // namespace

void bind_sigmoid_losses(py::module_& m) {
  m.def(
      "dice_bce_forward",
      [](const std::array<std::int64_t, 4>& shape, const View& logits, const View& target, const View& mask,
         std::uintptr_t pos_weight, std::uintptr_t weight, double bce_weight, double dice_weight, bool batch,
         bool squared, bool jaccard, double smooth_nr, double smooth_dr, int empty, int reduction, std::uintptr_t loss,
         std::uintptr_t coefficients, std::uintptr_t counts, int num_threads) {
        return fastmtl::dice_bce_forward(dice_bce_problem(shape, logits, target, mask, pos_weight, squared),
                                         {pointer<const float>(weight), bce_weight, dice_weight,
                                          {smooth_nr, smooth_dr, jaccard, squared, static_cast<fastmtl::Empty>(empty)},
                                          batch, reduction},
                                         pointer<float>(loss), pointer<float>(coefficients),
                                         pointer<std::int64_t>(counts), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "shape: groups, batch, channels, pixels; see dice_bce.hpp.");
  m.def(
      "sigmoid_overlap_forward",
      [](const std::array<std::int64_t, 4>& shape, const View& logits, const View& target, const View& mask,
         std::uintptr_t pos_weight, bool squared, std::uintptr_t sums, int num_threads) {
        return fastmtl::sigmoid_overlap_forward(dice_bce_problem(shape, logits, target, mask, pos_weight, squared),
                                                pointer<float>(sums), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "sums [5, B, C]; see dice_bce.hpp.");
  m.def(
      "dice_bce_backward",
      [](const std::array<std::int64_t, 4>& shape, const View& logits, const View& target, const View& mask,
         std::uintptr_t pos_weight, bool squared, const View& grad, std::uintptr_t coefficients, const View& gradient,
         int num_threads) {
        fastmtl::dice_bce_backward(dice_bce_problem(shape, logits, target, mask, pos_weight, squared), planes(grad),
                                   pointer<const float>(coefficients), planes(gradient), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = grad * d loss / d logits; see dice_bce.hpp.");
  m.def(
      "sigmoid_focal_forward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::uintptr_t factors, const std::array<double, 3>& options, int reduction, std::uintptr_t loss,
         std::uintptr_t coefficients, int num_threads) {
        return fastmtl::sigmoid_focal_forward(sigmoid_focal_problem(shape, logits, target, mask, factors, options),
                                              static_cast<fastmtl::Reduction>(reduction), pointer<float>(loss),
                                              pointer<float>(coefficients), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "options: positive, negative, gamma; see focal.hpp.");
  m.def(
      "sigmoid_focal_backward",
      [](const std::array<std::int64_t, 3>& shape, const View& logits, const View& target, const View& mask,
         std::uintptr_t factors, const std::array<double, 3>& options, const View& grad, std::uintptr_t coefficients,
         const View& gradient, int num_threads) {
        fastmtl::sigmoid_focal_backward(sigmoid_focal_problem(shape, logits, target, mask, factors, options),
                                        planes(grad), pointer<const float>(coefficients), planes(gradient),
                                        num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = grad * d loss / d logits; see focal.hpp.");
}
