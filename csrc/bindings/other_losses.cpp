// Losses on neither a sigmoid nor a softmax over channels: contrastive and regression.
#include "bindings/view.hpp"

#include "losses/nt_xent.hpp"
#include "losses/regression.hpp"

namespace pybind11::detail {
template <>
struct type_caster<fastmtl::Error> : enum_caster<fastmtl::Error> {};
}  // namespace pybind11::detail

void bind_other_losses(pybind11::module_& m) {
  using fastmtl::Planes;
  m.def("nt_xent_scratch", &fastmtl::nt_xent_scratch, "How many floats of scratch memory; see nt_xent.hpp.");
  define(
      m, "nt_xent_forward",
      [](Address data, fastmtl::Element type, std::int64_t rows, std::int64_t dim, Address mask, double temperature,
         Address loss, Address coefficients, Address scratch, int num_threads) {
        fastmtl::nt_xent_forward({data, type, rows, dim, mask, temperature}, loss, coefficients, scratch, num_threads);
      },
      "loss and coefficients [2 rows + 1]; see nt_xent.hpp.");
  define(
      m, "nt_xent_backward",
      [](Address data, fastmtl::Element type, std::int64_t rows, std::int64_t dim, Address mask, double temperature,
         Address grad, Address coefficients, Address gradient, Address scratch, int num_threads) {
        fastmtl::nt_xent_backward({data, type, rows, dim, mask, temperature}, grad, coefficients, gradient, scratch,
                                  num_threads);
      },
      "gradient = grad * d loss / d data; see nt_xent.hpp.");
  define(
      m, "regression_forward",
      [](const Sizes& shape, const Planes& input, const Planes& target, const Planes& mask, fastmtl::Error error,
         float beta, int reduction, Address loss, Address slopes, int num_threads) {
        fastmtl::regression_forward({loss_inputs(shape, input, target, mask), error, beta}, reduction, loss, slopes,
                                    num_threads);
      },
      "See regression.hpp.");
  define(
      m, "regression_backward",
      [](const Sizes& shape, const Planes& input, const Planes& target, const Planes& mask, fastmtl::Error error,
         float beta, Address grad, std::int64_t grad_stride, Address slopes, const Planes& gradient, int num_threads) {
        fastmtl::regression_backward({loss_inputs(shape, input, target, mask), error, beta}, grad, grad_stride, slopes,
                                     gradient, num_threads);
      },
      "gradient = grad * d loss / d input; see regression.hpp.");
}
