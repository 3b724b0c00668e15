// Losses on neither a sigmoid nor a softmax over channels: contrastive and regression.
#include "bindings/view.hpp"

#include "losses/nt_xent.hpp"
#include "losses/regression.hpp"

namespace py = pybind11;

namespace {

fastmtl::RegressionProblem regression_problem(const std::array<std::int64_t, 3>& shape, const View& input,
                                              const View& target, const View& mask, int error, double beta) {
  return {loss_inputs(shape, input, target, mask), static_cast<fastmtl::Error>(error), static_cast<float>(beta)};
}

}  // namespace

void bind_other_losses(py::module_& m) {
  m.def("nt_xent_scratch", &fastmtl::nt_xent_scratch, "How many floats of scratch memory; see nt_xent.hpp.");
  m.def(
      "nt_xent_forward",
      [](std::uintptr_t data, int type, std::int64_t rows, std::int64_t dim, std::uintptr_t mask, double temperature,
         std::uintptr_t loss, std::uintptr_t coefficients, std::uintptr_t scratch, int num_threads) {
        fastmtl::nt_xent_forward({pointer<const void>(data), static_cast<fastmtl::Element>(type), rows, dim,
                                  pointer<const std::uint8_t>(mask), temperature},
                                 pointer<float>(loss), pointer<float>(coefficients), pointer<float>(scratch),
                                 num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "loss and coefficients [2 rows + 1]; see nt_xent.hpp.");
  m.def(
      "nt_xent_backward",
      [](std::uintptr_t data, int type, std::int64_t rows, std::int64_t dim, std::uintptr_t mask, double temperature,
         std::uintptr_t grad, std::uintptr_t coefficients, std::uintptr_t gradient, std::uintptr_t scratch,
         int num_threads) {
        fastmtl::nt_xent_backward({pointer<const void>(data), static_cast<fastmtl::Element>(type), rows, dim,
                                   pointer<const std::uint8_t>(mask), temperature},
                                  pointer<const float>(grad), pointer<const float>(coefficients),
                                  pointer<void>(gradient), pointer<float>(scratch), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = grad * d loss / d data; see nt_xent.hpp.");
  m.def(
      "regression_forward",
      [](const std::array<std::int64_t, 3>& shape, const View& input, const View& target, const View& mask, int error,
         double beta, int reduction, std::uintptr_t loss, std::uintptr_t slopes, int num_threads) {
        fastmtl::regression_forward(regression_problem(shape, input, target, mask, error, beta), reduction,
                                    pointer<float>(loss), pointer<float>(slopes), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "shape: batch, channels, pixels; see regression.hpp.");
  m.def(
      "regression_backward",
      [](const std::array<std::int64_t, 3>& shape, const View& input, const View& target, const View& mask, int error,
         double beta, std::uintptr_t grad, std::int64_t grad_stride, std::uintptr_t slopes, const View& gradient,
         int num_threads) {
        fastmtl::regression_backward(regression_problem(shape, input, target, mask, error, beta),
                                     pointer<const float>(grad), grad_stride, pointer<const float>(slopes),
                                     planes(gradient), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "gradient = grad * d loss / d input; see regression.hpp.");
}
